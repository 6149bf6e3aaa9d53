"""Validation of the kinds beyond plain LoRA: what is read, every fault alone, and three at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.format.artifact import Limits, read_artifact
from tests.support.adapters import lora_tensors, write_artifact
from tests.support.artifact_cases import LIMITS, PREFIX
from tests.support.kind_cases import (
    BASE,
    CONFIGS,
    NORM,
    Change,
    Q,
    V,
    drop,
    faults_of,
    fill,
    poison,
    put,
    read,
    set_key,
    valid,
)


def test_dora(tmp_path: Path) -> None:
    artifact = read(tmp_path, "dora")
    _, tensors = valid("dora")
    delta = artifact.delta["model.layers.0.q_proj"]
    assert artifact.kind == "LORA+DORA"
    assert delta.magnitude is not None
    assert torch.equal(delta.magnitude, tensors[f"{Q}.lora_magnitude_vector"])
    assert delta.scaling == 4.0


def test_a_bias_on_b(tmp_path: Path) -> None:
    artifact = read(tmp_path, "lora_bias")
    assert artifact.kind == "LORA+BIAS"
    assert all(d.b_bias is not None and d.bias is None for d in artifact.delta.values())


def test_biases_of_the_targets(tmp_path: Path) -> None:
    artifact = read(tmp_path, "lora_only")
    assert artifact.delta["model.layers.0.q_proj"].bias is not None
    assert artifact.delta["model.layers.0.v_proj"].bias is None, "the base has none there"
    assert len(artifact.delta) == 4


def test_all_biases(tmp_path: Path) -> None:
    """Modules that are no targets, and norms, come with a bias alone; norms last."""
    artifact = read(tmp_path, "all")
    up = artifact.delta["model.layers.0.up_proj"]
    assert up.bias is not None
    assert (up.rank, up.a.shape, up.b.shape) == (0, (0, 8), (12, 0))
    assert list(artifact.delta)[-1] == NORM
    assert len(artifact.delta) == 7


def test_ia3(tmp_path: Path) -> None:
    artifact = read(tmp_path, "ia3")
    q, up = artifact.delta["model.layers.1.q_proj"], artifact.delta["model.layers.1.up_proj"]
    assert (artifact.kind, artifact.rank) == ("IA3", 0)
    assert q.output_scale is not None
    assert q.output_scale.shape == (8,)
    assert up.input_scale is not None
    assert up.input_scale.shape == (8,)
    assert q.input_scale is up.output_scale is None


@pytest.mark.parametrize(
    ("feedforward", "scaled"),
    [(["proj"], {"q_proj", "up_proj"}), ([], set()), (".*up_proj", {"up_proj"}), ("up_proj", set())],
)
def test_feedforward_modules_are_matched_as_in_peft(
    tmp_path: Path, feedforward: Any, scaled: set[str]
) -> None:
    config = CONFIGS["ia3"] | {"feedforward_modules": feedforward}
    artifact = read_artifact(write_artifact(tmp_path, config, lora_tensors(BASE, config)), BASE, LIMITS)
    found = {n.rpartition(".")[2] for n, delta in artifact.delta.items() if delta.input_scale is not None}
    assert found == scaled


def test_vera(tmp_path: Path) -> None:
    artifact = read(tmp_path, "vera")
    _, tensors = valid("vera")
    a, b = tensors["base_model.vera_A"], tensors["base_model.vera_B"]
    assert (a.shape, b.shape) == ((6, 8), (12, 6))
    delta = artifact.delta["model.layers.0.q_proj"]
    assert (artifact.kind, artifact.rank, delta.scaling) == ("VERA", 6, 1.0)
    x = torch.randn(5, 8)
    wanted = tensors[f"{Q}.vera_lambda_b"] * ((tensors[f"{Q}.vera_lambda_d"] * (x @ a.T)) @ b[:8].T)
    torch.testing.assert_close(x @ delta.a.T @ delta.scaled_b().T, wanted)


FAULTS: list[tuple[str, Change, str]] = [
    ("dora", drop(f"{Q}.lora_magnitude_vector"), "missing tensors: .*q_proj.lora_magn"),
    ("dora", put(f"{Q}.lora_magnitude_vector", torch.ones(9)), r"size mismatch.*magnitude.*\[9\], \[8\]"),
    ("dora", put(f"{Q}.lora_magnitude_vector", torch.ones(8, 1)), r"size mismatch.*magnitude.*\[8, 1\]"),
    ("dora", poison(f"{Q}.lora_magnitude_vector"), "NaN or infinite values in .*lora_magnitude_vector"),
    ("dora", put(f"{Q}.lora_magnitude_vector.weight", torch.ones(8)), "unexpected tensors.*not named"),
    ("dora", put(f"{PREFIX}.0.up_proj.lora_magnitude_vector", torch.ones(12)), "unexpected.*not select"),
    ("dora", put(f"{Q}.lora_B.bias", torch.ones(8)), "unexpected.*does not set lora_bias"),
    ("dora", set_key("lora_bias", True), "lora_bias cannot be used with use_dora"),
    ("dora", set_key("alora_invocation_tokens", [1]), "alora_invocation_tokens cannot be used with use_dora"),
    ("lora_bias", drop(f"{V}.lora_B.bias"), "missing tensors: .*0.v_proj.lora_B.bias"),
    ("lora_bias", put(f"{V}.lora_B.bias", torch.ones(5)), r"size mismatch.*lora_B.bias.*\[5\], \[4\]"),
    ("lora_bias", poison(f"{V}.lora_B.bias"), "NaN or infinite values in .*lora_B.bias"),
    ("lora_only", drop(f"{Q}.base_layer.bias"), "missing tensors: .*0.q_proj.base_layer.bias"),
    ("lora_only", put(f"{Q}.base_layer.bias", torch.ones(1)), r"size mismatch.*layer.bias.*\[1\], \[8\]"),
    ("lora_only", poison(f"{Q}.base_layer.bias"), "NaN or infinite values in .*base_layer.bias"),
    ("lora_only", put(f"{V}.base_layer.bias", torch.ones(4)), "unexpected.*v_proj.base.*does not select"),
    ("lora_only", put(f"{PREFIX}.0.norm.bias", torch.ones(8)), "unexpected.*norm.bias.*no such tensors"),
    ("lora_only", set_key("alora_invocation_tokens", [1]), "bias cannot be used with alora_invocation"),
    ("all", drop(f"{PREFIX}.0.norm.bias"), "missing tensors: .*0.norm.bias"),
    ("all", drop(f"{PREFIX}.1.up_proj.bias"), "missing tensors: .*1.up_proj.bias"),
    ("all", put(f"{PREFIX}.0.norm.bias", torch.ones(9)), r"size mismatch.*norm.bias.*\[9\], \[8\]"),
    ("all", put("base_model.model.lm_head.bias", torch.ones(9)), "unexpected.*lm_head.*output head"),
    ("ia3", drop(f"{Q}.ia3_l"), "selects modules that have no tensors: 'model.layers.0.q_proj'"),
    ("ia3", put(f"{Q}.ia3_l", torch.ones(1, 8)), r"size mismatch.*ia3_l.*\[1, 8\], \[8, 1\]"),
    ("ia3", put(f"{V}.ia3_l", torch.ones(4, 1)), "unexpected.*v_proj.ia3_l.*does not select"),
    ("ia3", poison(f"{Q}.ia3_l"), "NaN or infinite values in .*ia3_l"),
    ("ia3", put(f"{Q}.lora_A.weight", torch.ones(4, 8)), "unexpected.*a IA3 adapter with this config has no"),
    ("ia3", fill(".ia3_l", 1.0), "would do nothing: every scale is 1"),
    ("ia3", set_key("feedforward_modules", None), "feedforward_modules is missing"),
    ("ia3", set_key("feedforward_modules", "("), "feedforward_modules: .*not a regular expression"),
    ("ia3", set_key("modules_to_save", ["lm_head"]), "modules_to_save selects 'lm_head': only norms"),
    ("ia3", set_key("r", 8), "'r' is not an option"),
    ("vera", drop("base_model.vera_A"), "missing tensors: 'base_model.vera_A'"),
    ("vera", put("base_model.vera_B", torch.ones(11, 6)), r"size mismatch.*vera_B.*\[11, 6\], \[12, 6\]"),
    ("vera", drop(f"{Q}.vera_lambda_d"), "missing tensors: .*0.q_proj.vera_lambda_d"),
    ("vera", put(f"{Q}.vera_lambda_b", torch.ones(7)), r"size mismatch.*lambda_b.*\[7\], \[8\]"),
    ("vera", poison("base_model.vera_A"), "NaN or infinite values in 'base_model.vera_A'"),
    ("vera", fill("lambda_b", 0.0), "would do nothing: vera_lambda_b or vera_lambda_d"),
    ("vera", set_key("save_projection", 2), "save_projection should be true or false"),
    ("vera", set_key("lora_alpha", 8), "'lora_alpha' is not an option"),
    ("vera_seed", put("base_model.vera_A", torch.ones(6, 8)), "unexpected.*does not set save_projection"),
    ("vera_seed", set_key("projection_prng_key", -1), "projection_prng_key should be a seed"),
    ("vera_seed", set_key("projection_prng_key", 1 << 63), "projection_prng_key should be a seed"),
    ("vera_seed", set_key("projection_prng_key", True), "projection_prng_key should be a seed"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "expected"), FAULTS)
def test_every_fault_is_told(tmp_path: Path, kind: str, change: Change, expected: str) -> None:
    faults = faults_of(tmp_path, kind, change)
    assert any(re.search(expected, fault) for fault in faults), faults
    assert len(faults) == 1, faults


THREE: list[tuple[str, tuple[Change, ...], tuple[str, ...]]] = [
    (
        "dora",
        (
            drop(f"{Q}.lora_magnitude_vector"),
            put(f"{V}.lora_magnitude_vector", torch.ones(5)),
            set_key("use_qalora", True),
        ),
        ("missing tensors", "size mismatch", "use_qalora=True is not served"),
    ),
    (
        "all",
        (
            poison(f"{PREFIX}.0.norm.bias"),
            drop(f"{Q}.base_layer.bias"),
            put(f"{V}.base_layer.bias", torch.ones(4)),
        ),
        ("NaN", "missing tensors", "unexpected tensors"),
    ),
    (
        "ia3",
        (poison(f"{Q}.ia3_l"), put(f"{V}.ia3_l", torch.ones(4, 1)), set_key("task_type", "TOKEN_CLS")),
        ("NaN", "unexpected tensors", "task_type"),
    ),
    (
        "vera",
        (
            put("base_model.vera_B", torch.ones(11, 6)),
            drop(f"{Q}.vera_lambda_d"),
            poison("base_model.vera_A"),
        ),
        ("size mismatch", "missing tensors", "NaN"),
    ),
]


@pytest.mark.parametrize(("kind", "changes", "expected"), THREE)
def test_three_faults_at_once(
    tmp_path: Path, kind: str, changes: tuple[Change, ...], expected: tuple[str, ...]
) -> None:
    faults = faults_of(tmp_path, kind, *changes)
    assert len(faults) == 3, faults
    for sentence in expected:
        assert any(sentence in fault for fault in faults), (sentence, faults)


def test_a_vera_above_the_rank_limit_says_what_to_do(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "vera", limits=Limits(max_rank=5, max_bytes=1 << 20))
    assert faults == (
        "rank 6 is above the limit of 5: VeRA is served as LoRA of its rank, so start the server with "
        "--max-lora-rank 6",
    )
