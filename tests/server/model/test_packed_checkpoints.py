"""Checkpoints that are quantized already are served as they are, and what can't be is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.errors import BaseModelError
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe
from tests.support.gguf_models import write_gguf_model, write_gguf_values
from tests.support.grouped_checkpoints import Grouping, write_dequantized, write_grouped
from tests.support.packed_models import assert_probed, assert_same
from tests.support.tiny_models import tiny_model

K_WIDTHS = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


def load(directory: Path, **options: Any) -> LoadedModel:
    return load_model(directory, **{"dtype": "fp32", "device": "cpu", "max_model_len": None, **options})


def k_mix(name: str) -> str:
    """As llama.cpp mixes types, and one matrix that is not quantized beside others that are."""
    kinds = {"attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "ffn_gate": "Q4_0", "ffn_up": "F16"}
    kinds |= {"ffn_down": "Q8_0", "attn_output": "Q5_0", "token_embd": "Q6_K", "output": "Q6_K"}
    return next(kind for part, kind in kinds.items() if part in name)


def gguf_base(tmp_path: Path, family: str, kind_of: Callable[[str], str], **metadata: Any) -> Path:
    model = tiny_model(tmp_path / "model", family, **K_WIDTHS)
    return write_gguf_model(model, tmp_path / "base.gguf", kind_of, **metadata)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_gguf_file_of_many_types(tmp_path: Path, family: str) -> None:
    file = gguf_base(tmp_path, family, k_mix)
    loaded = load(resolve_model(str(file), tmp_path / "data"))
    assert loaded.quantize == "gguf"
    assert_same(loaded, write_gguf_values(tmp_path / "model", tmp_path / "values", k_mix))
    assert_probed(loaded)


def q4_k_m(name: str) -> str:
    """As llama.cpp mixes types in files that are called Q4_K_M."""
    return "Q6_K" if any(part in name for part in ("attn_v", "ffn_down", "token_embd")) else "Q4_K"


@pytest.mark.parametrize("how", [q4_k_m, Grouping("gptq"), Grouping("awq")], ids=["gguf", "gptq", "awq"])
def test_in_16_bits_the_native_kernels_multiply_by_the_codes(tmp_path: Path, how: Any) -> None:
    if isinstance(how, Grouping):
        base = write_grouped(tiny_model(tmp_path / "model", num_hidden_layers=1), tmp_path / "few", how)
    else:
        base = resolve_model(str(gguf_base(tmp_path, "llama", how)), tmp_path / "data")
    loaded = load(base, dtype="bf16")
    decoder = next(decoder_candidates(loaded, "native"))
    decoder.allocate(torch.zeros(64, dtype=torch.bfloat16), PROBE_BLOCKS, PROBE_ROWS)
    assert decoder.kernels.startswith("cpu-")
    probe(loaded.hf, decoder, loaded.dtype)
    layer = loaded.hf.model.layers[0].self_attn.v_proj
    weight = layer.weight_of_codes()
    decoder.take_over(loaded.hf)
    assert layer.codes is None
    assert torch.equal(decoder.weight(2), weight)


def test_groups_that_do_not_follow_each_other_take_the_pytorch_kernels(tmp_path: Path) -> None:
    how = Grouping("gptq", act_order=True)
    loaded = load(write_grouped(tiny_model(tmp_path / "model"), tmp_path / "few", how), dtype="bf16")
    decoder = next(decoder_candidates(loaded))
    assert decoder.kernels == "pytorch"
    with pytest.raises(ConfigError, match="do not follow each other"):
        next(decoder_candidates(loaded, "native"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-untied-bias", "qwen2"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_biases_and_heads_of_their_own(tmp_path: Path, family: str, kind: str) -> None:
    overrides = {"use_sliding_window": False} if family == "qwen2" else {"mlp_bias": False}
    model = tiny_model(tmp_path / "model", family, **K_WIDTHS, **overrides)
    file = write_gguf_model(model, tmp_path / "base.gguf", lambda _: kind)
    loaded = load(resolve_model(str(file), tmp_path / "data"))
    assert_same(loaded, write_gguf_values(model, tmp_path / "values", lambda _: kind))
    assert_probed(loaded)


def test_a_gguf_file_in_16_bits_is_no_quantized_base(tmp_path: Path) -> None:
    file = gguf_base(tmp_path, "llama", lambda _: "F16")
    loaded = load(resolve_model(str(file), tmp_path / "data"))
    assert loaded.quantize == "none"
    assert type(loaded.hf.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert_same(loaded, write_gguf_values(tmp_path / "model", tmp_path / "values", lambda _: "F16"))


def test_a_file_moved_and_one_replaced(tmp_path: Path) -> None:
    """The directory that is made for a file belongs to its path and its header, and is made once."""
    file = gguf_base(tmp_path, "llama", lambda _: "Q8_0")
    first = resolve_model(str(file), tmp_path / "data")
    assert resolve_model(str(file), tmp_path / "data") == first
    assert resolve_model(str(first), tmp_path / "data") == first
    assert resolve_model(str(file.rename(tmp_path / "other.gguf")), tmp_path / "data") != first
    replaced = write_gguf_model(tmp_path / "model", file, lambda _: "Q4_0")
    assert resolve_model(str(replaced), tmp_path / "data") != first
    assert not list((tmp_path / "data").rglob("*.partial"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("Q2_K", "the types Q2_K are not served"), ("IQ4_NL", "the types IQ4_NL are not served")],
)
def test_types_that_are_not_served_are_named(tmp_path: Path, kind: str, message: str) -> None:
    file = gguf_base(tmp_path, "llama", lambda _: "Q8_0")
    content = bytearray(file.read_bytes())
    reader = gguf.GGUFReader(file)
    field = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight").field
    place = int(field.parts[-2].ctypes.data - reader.data.ctypes.data)
    content[place : place + 4] = gguf.GGMLQuantizationType[kind].to_bytes(4, "little")
    file.write_bytes(content)
    del reader
    with pytest.raises(ModelRefused, match=message):
        load(resolve_model(str(file), tmp_path / "data"))


GROUPINGS = [
    Grouping("gptq"),
    Grouping("gptq", version=2, symmetric=True),
    Grouping("gptq", act_order=True),
    Grouping("gptq", group_size=-1),
    Grouping("awq"),
]


@pytest.mark.parametrize("how", GROUPINGS, ids=str)
def test_a_repository_of_groups(tmp_path: Path, how: Grouping) -> None:
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    loaded = load(write_grouped(model, tmp_path / "few", how))
    assert loaded.quantize == how.method
    assert_same(loaded, write_dequantized(model, tmp_path / "values", how))
    if how in (Grouping("gptq"), Grouping("awq")):
        assert_probed(loaded)


def test_layers_that_were_left_plain(tmp_path: Path) -> None:
    model, how = tiny_model(tmp_path / "model", "qwen2"), Grouping("awq")
    keep = ("layers.0.mlp", "k_proj")
    loaded = load(write_grouped(model, tmp_path / "few", how, keep=keep))
    assert_same(loaded, write_dequantized(model, tmp_path / "values", how, keep=keep))
    assert_probed(loaded)


def test_the_fingerprint_is_that_of_the_codes(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    one, same = (load(write_grouped(model, tmp_path / n, Grouping("awq"))).fingerprint for n in "ab")
    other = load(write_grouped(model, tmp_path / "c", Grouping("awq", symmetric=True))).fingerprint
    assert one == same
    assert len({one, other, load(model).fingerprint}) == 3


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "bits": 3, "group_size": 32}, "GPTQ in 3 bits is not served"),
    ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "GPTQ in 8 bits is not served"),
    ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "AWQ's version 'gemv'"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "'marlin'"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 32, "is_marlin_format": True}, "'marlin'"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "scales has the shape"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "is no size"),
    ({"quant_method": "awq", "bits": 4, "group_size": 32}, "has the shape"),
    ({"quant_method": "compressed-tensors"}, "quantized already, by 'compressed-tensors'"),
    ({}, "does not name"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda x: str(x)[:60])
def test_what_is_not_served_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=1)
    few = write_grouped(model, tmp_path / "few", Grouping("gptq"))
    config = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(ModelRefused, match=message):
        load(few)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.scales"), "up_proj has no scales"),
        (lambda t: t.pop("model.norm.weight"), "weights are missing"),
        (lambda t: t.update({"model.layers.0.mlp.act.scales": torch.ones(96)}), "are not the model's"),
        (lambda t: t["model.layers.0.mlp.up_proj.g_idx"].fill_(9), "g_idx does not name a group"),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.scales": torch.ones(2, 96).long()}), "not served"),
    ],
)
def test_damaged_repositories(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=1)
    few = write_grouped(model, tmp_path / "few", Grouping("gptq"))
    tensors = load_file(few / "model.safetensors")
    change(tensors)
    save_file(tensors, few / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRefused, match=message) as refused:
        load(few)
    assert "\n" not in str(refused.value)


def test_biases_of_layers_that_have_none(tmp_path: Path) -> None:
    """GPTQ's tools write zeros for them; anything else is no such bias."""
    model, how = tiny_model(tmp_path / "model", num_hidden_layers=1), Grouping("gptq")
    few = write_grouped(model, tmp_path / "few", how)
    tensors = load_file(few / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.bias"
    save_file({**tensors, name: torch.zeros(96).half()}, few / "model.safetensors", {"format": "pt"})
    assert_same(load(few), write_dequantized(model, tmp_path / "values", how))
    save_file({**tensors, name: torch.ones(96).half()}, few / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelRefused, match=r"up_proj\.bias"):
        load(few)


def test_it_is_not_quantized_twice(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    few = write_grouped(tiny_model(tmp_path / "model"), tmp_path / "few", Grouping("awq"))
    with pytest.raises(ConfigError, match=r"--quantize nf4: .* is quantized already \(awq\)"):
        load(few, quantize="nf4")


def test_a_directory_of_gguf_files_names_one(tmp_path: Path) -> None:
    file = gguf_base(tmp_path, "llama", lambda _: "Q8_0")
    folder = tmp_path / "folder"
    folder.mkdir()
    file.rename(folder / "a.gguf")
    with pytest.raises(BaseModelError, match=r"one at a time: name the file, as .*a\.gguf"):
        resolve_model(str(folder), tmp_path / "data")
