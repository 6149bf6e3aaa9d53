"""Fused projections split, and projections joined: the change to every weight stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact
from manylora.adapters.format.foreign.convert import convert
from tests.support.adapters import lora_config, write_artifact
from tests.support.foreign_adapters import LIMITS, PREFIX, Tensors, converted, read, refusal, tiny_base

HIDDEN, INNER, HEADS, WIDTH, RANK = 32, 48, 4, 8, 4
DRAW = torch.Generator().manual_seed(3)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=DRAW) - 0.5


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    """The change to each module's weight, in float64."""
    return {
        name: delta.scaling * (delta.b.double() @ delta.a.double()) for name, delta in artifact.delta.items()
    }


def by_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: int) -> torch.Tensor:
    """Rows of q, k and v in Megatron's order, the slow way."""
    each = q.shape[0] // WIDTH // groups
    rows = []
    for group in range(groups):
        rows.append(q[group * each * WIDTH : (group + 1) * each * WIDTH])
        rows.append(k[group * WIDTH : (group + 1) * WIDTH])
        rows.append(v[group * WIDTH : (group + 1) * WIDTH])
    return torch.cat(rows)


def adapter(directory: Path, modules: dict[str, tuple[torch.Tensor, torch.Tensor]], **config: Any) -> Path:
    tensors: Tensors = {}
    for name, (a, b) in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.clone()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.clone()
    targets = sorted({name.rpartition(".")[2] for name in modules})
    return write_artifact(directory, lora_config(rank=RANK, alpha=6, targets=targets, **config), tensors)


def projections(kv: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rand(HEADS * WIDTH, RANK), rand(kv * WIDTH, RANK), rand(kv * WIDTH, RANK)


ATTENTION = "model.layers.1.self_attn"


@pytest.mark.parametrize("name", ["qkv_proj", "to_qkv", "W_pack", "Wqkv"])
def test_one_after_another_on_a_split_base(tmp_path: Path, name: str) -> None:
    base, (q, k, v), a = tiny_base("llama"), projections(2), rand(RANK, HIDDEN)
    adapter(tmp_path / "in", {f"{ATTENTION}.{name}": (a, torch.cat([q, k, v]))})
    found = converted(tmp_path / "in", tmp_path / "out", base)
    changes = weights(read(tmp_path / "out", base))
    for module, b in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
        torch.testing.assert_close(changes[f"{ATTENTION}.{module}"], 1.5 * b.double() @ a.double())
    assert "a fused projection split" in found.conversion.details()["rules"]
    assert read(tmp_path / "out", base).rank == RANK


def test_megatrons_groups_on_a_split_base(tmp_path: Path) -> None:
    base, (q, k, v), a = tiny_base("llama"), projections(2), rand(RANK, HIDDEN)
    gate, up, down, o = rand(INNER, RANK), rand(INNER, RANK), rand(HIDDEN, RANK), rand(HIDDEN, RANK)
    a_down = rand(RANK, INNER)
    megatron = {
        "decoder.layers.0.self_attention.linear_qkv": (a, by_group(q, k, v, 2)),
        "decoder.layers.0.self_attention.linear_proj": (a, o),
        "decoder.layers.0.mlp.linear_fc1": (a, torch.cat([gate, up])),
        "decoder.layers.0.mlp.linear_fc2": (a_down, down),
    }
    tensors = {}
    for name, (one, other) in megatron.items():
        tensors[f"model.{name}.adapter.linear_in.weight"] = one.clone()
        tensors[f"model.{name}.adapter.linear_out.weight"] = other
    targets = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    write_artifact(tmp_path / "in", lora_config(rank=RANK, alpha=6, targets=targets), tensors)
    found = converted(tmp_path / "in", tmp_path / "out", base)
    assert found.conversion.details()["format"] == "Megatron"
    changes, block = weights(read(tmp_path / "out", base)), "model.layers.0"
    for module, b in (("q_proj", q), ("k_proj", k), ("v_proj", v), ("o_proj", o)):
        torch.testing.assert_close(changes[f"{block}.self_attn.{module}"], 1.5 * b.double() @ a.double())
    for module, b in (("gate_proj", gate), ("up_proj", up)):
        torch.testing.assert_close(changes[f"{block}.mlp.{module}"], 1.5 * b.double() @ a.double())
    torch.testing.assert_close(changes[f"{block}.mlp.down_proj"], 1.5 * down.double() @ a_down.double())


@pytest.mark.parametrize(("family", "kv"), [("phi3", 2), ("gpt_neox", 4), ("gpt2", 4)])
def test_projections_on_a_fused_base(tmp_path: Path, family: str, kv: int) -> None:
    """Separate q, k and v, each with an A of its own; k has none."""
    base, (q, k, v) = tiny_base(family), projections(kv)
    a_q, a_v = rand(RANK, HIDDEN), rand(RANK, HIDDEN)
    names = ("q_proj", "v_proj") if family == "phi3" else ("to_q", "to_v")
    adapter(tmp_path / "in", {f"{ATTENTION}.{names[0]}": (a_q, q), f"{ATTENTION}.{names[1]}": (a_v, v)})
    found = converted(tmp_path / "in", tmp_path / "out", base)
    artifact = read(tmp_path / "out", base)
    assert artifact.rank == 2 * RANK
    (change,) = weights(artifact).values()
    parts = (
        1.5 * q.double() @ a_q.double(),
        torch.zeros(len(k), HIDDEN).double(),
        1.5 * v.double() @ a_v.double(),
    )
    expected = by_group(*parts, groups=kv) if family == "gpt_neox" else torch.cat(parts)
    torch.testing.assert_close(change, expected)
    assert "projections joined to the base's fused one" in found.conversion.details()["rules"]


@pytest.mark.parametrize(("family", "kv"), [("phi3", 2), ("gpt_neox", 4), ("gpt2", 4)])
def test_a_shared_a_keeps_its_rank(tmp_path: Path, family: str, kv: int) -> None:
    base, (q, k, v), a = tiny_base(family), projections(kv), rand(RANK, HIDDEN)
    adapter(tmp_path / "in", {"decoder.layers.0.self_attention.linear_qkv": (a, by_group(q, k, v, kv))})
    converted(tmp_path / "in", tmp_path / "out", base)
    artifact = read(tmp_path / "out", base)
    assert artifact.rank == RANK
    (change,) = weights(artifact).values()
    rows = by_group(q, k, v, kv) if family == "gpt_neox" else torch.cat([q, k, v])
    torch.testing.assert_close(change, 1.5 * rows.double() @ a.double())


def test_gate_and_up_on_a_fused_base(tmp_path: Path) -> None:
    base, a, other = tiny_base("phi3"), rand(RANK, HIDDEN), rand(RANK, HIDDEN)
    gate, up, mlp = rand(INNER, RANK), rand(INNER, RANK), "model.layers.0.mlp"
    adapter(tmp_path / "in", {f"{mlp}.gate_proj": (a, gate), f"{mlp}.up_proj": (other, up)})
    converted(tmp_path / "in", tmp_path / "out", base)
    (change,) = weights(read(tmp_path / "out", base)).values()
    expected = torch.cat([gate.double() @ a.double(), up.double() @ other.double()])
    torch.testing.assert_close(change, 1.5 * expected)


def test_a_of_three_times_the_rank(tmp_path: Path) -> None:
    """loralib's fused layers: three A's one above the other, and B's rows for each of them."""
    base, (q, k, v), a = tiny_base("gpt2"), projections(4), rand(3 * RANK, HIDDEN)
    adapter(tmp_path / "in", {"transformer.h.1.attn.to_qkv": (a, torch.cat([q, k, v]))})
    converted(tmp_path / "in", tmp_path / "out", base)
    (change,) = weights(read(tmp_path / "out", base)).values()
    expected = torch.cat([b.double() @ part.double() for b, part in zip((q, k, v), a.chunk(3), strict=True)])
    torch.testing.assert_close(change, 1.5 * expected)


def test_scales_by_pattern_are_those_of_the_fused_name(tmp_path: Path) -> None:
    base, (q, k, v), a = tiny_base("llama"), projections(2), rand(RANK, HIDDEN)
    pattern = {"layers.0.self_attn.qkv_proj": 12}
    modules = {f"model.layers.{i}.self_attn.qkv_proj": (a, torch.cat([q, k, v])) for i in (0, 1)}
    adapter(tmp_path / "in", modules, alpha_pattern=pattern)
    converted(tmp_path / "in", tmp_path / "out", base)
    scales = {n: d.scaling for n, d in read(tmp_path / "out", base).delta.items()}
    assert {scale for name, scale in scales.items() if ".0." in name} == {3.0}
    assert {scale for name, scale in scales.items() if ".1." in name} == {1.5}


def test_dora_and_its_magnitudes(tmp_path: Path) -> None:
    base, (q, k, v), a = tiny_base("llama"), projections(2), rand(RANK, HIDDEN)
    name = f"{ATTENTION}.qkv_proj"
    directory = adapter(tmp_path / "in", {name: (a, torch.cat([q, k, v]))}, use_dora=True)
    magnitude = torch.arange(64.0) + 1
    tensors = {
        f"{PREFIX}{name}.lora_A.weight": a,
        f"{PREFIX}{name}.lora_B.weight": torch.cat([q, k, v]),
        f"{PREFIX}{name}.lora_magnitude_vector": magnitude,
    }
    config = lora_config(rank=RANK, alpha=6, targets=["qkv_proj"], use_dora=True)
    write_artifact(directory, config, tensors)
    converted(tmp_path / "in", tmp_path / "out", base)
    delta = read(tmp_path / "out", base).delta
    assert torch.equal(delta[f"{ATTENTION}.k_proj"].magnitude, magnitude[32:48])  # type: ignore[arg-type]


def test_what_is_ambiguous_is_refused(tmp_path: Path) -> None:
    """query_key_value has rows by group in NeoX and Falcon, and q, k, v one after another in ChatGLM."""
    base, (q, k, v), a = tiny_base("llama"), projections(2), rand(RANK, HIDDEN)
    adapter(tmp_path / "in", {"transformer.layers.0.attention.query_key_value": (a, torch.cat([q, k, v]))})
    assert "by group in some models" in refusal(tmp_path / "in", tmp_path / "out", base)


@pytest.mark.parametrize("rows", [63, 96, 1])
def test_rows_that_do_not_fit(tmp_path: Path, rows: int) -> None:
    adapter(tmp_path / "in", {f"{ATTENTION}.qkv_proj": (rand(RANK, HIDDEN), rand(rows, RANK))})
    assert f"its B has {rows} rows, the base has 64 (q 32, k 16, v 16)" in refusal(
        tmp_path / "in", tmp_path / "out", tiny_base("llama")
    )


def test_a_projection_twice(tmp_path: Path) -> None:
    base, (q, k, v), a = tiny_base("llama"), projections(2), rand(RANK, HIDDEN)
    fused, alone = f"{ATTENTION}.qkv_proj", "decoder.layers.1.self_attention.linear_q"
    adapter(tmp_path / "in", {fused: (a, torch.cat([q, k, v])), alone: (a, q)})
    assert "both change q of block 1" in refusal(tmp_path / "in", tmp_path / "out", base)
    adapter(tmp_path / "in", {fused: (a, torch.cat([q, k, v])), f"{ATTENTION}.q_proj": (a, q)})
    assert "under its own name and under another one" in refusal(tmp_path / "in", tmp_path / "out", base)


def test_blocks_that_are_not_there(tmp_path: Path) -> None:
    adapter(
        tmp_path / "in", {"decoder.layers.9.self_attention.linear_qkv": (rand(RANK, HIDDEN), rand(64, RANK))}
    )
    assert "can't be split" in refusal(tmp_path / "in", tmp_path / "out", tiny_base("llama"))
    adapter(tmp_path / "in", {"decoder.layers.9.mlp.linear_fc2": (rand(RANK, INNER), rand(HIDDEN, RANK))})
    assert "has no such projections" in refusal(tmp_path / "in", tmp_path / "out", tiny_base("llama"))


def test_half_a_dora(tmp_path: Path) -> None:
    name, (q, _, _) = f"{ATTENTION}.q_proj", projections(2)
    config = lora_config(rank=RANK, alpha=6, targets=["q_proj"], use_dora=True)
    tensors = {
        f"{PREFIX}{name}.lora_A.weight": rand(RANK, HIDDEN),
        f"{PREFIX}{name}.lora_B.weight": q,
        f"{PREFIX}{name}.lora_magnitude_vector": torch.ones(32),
    }
    write_artifact(tmp_path / "in", config, tensors)
    assert "magnitudes of the other rows are missing" in refusal(
        tmp_path / "in", tmp_path / "out", tiny_base("phi3")
    )


@pytest.mark.parametrize(
    ("family", "module", "rows"),
    [
        ("llama", "transformer.h.0.attn.c_attn", 64),
        ("llama", "model.decoder.layers.0.self_attn.q_proj", 32),
        ("llama", "gpt_neox.layers.0.attention.dense", 32),
        ("gpt2", "model.layers.0.self_attn.q_proj", 32),
        ("gpt_neox", "model.layers.0.mlp.up_proj", 48),
    ],
)
def test_adapters_of_another_architecture_stay_that(
    tmp_path: Path, family: str, module: str, rows: int
) -> None:
    """Whose shapes fit by chance."""
    adapter(tmp_path / "in", {module: (rand(RANK, HIDDEN), rand(rows, RANK))})
    base = tiny_base(family)
    assert convert(tmp_path / "in", base, LIMITS) is None
    with pytest.raises(ArtifactError, match="no such linear layers in the base model"):
        read(tmp_path / "in", base)
