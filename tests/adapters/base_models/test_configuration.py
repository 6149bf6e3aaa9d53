"""Configs that say something else than the weights, and settings for generating that nobody can read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.checkpoint import Checkpoint
from manylora.adapters.base_models.configuration import load_config, packed_tensors, plain_config
from manylora.adapters.base_models.generation import read_generation
from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.errors import ArtifactError, BaseModelError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.recipe import Member
from manylora.adapters.training.model.base import find_base
from manylora.server.errors import ModelRefused
from manylora.server.model.loading.loader import load_model
from tests.support.adapters import write_adapter
from tests.support.members import LIMITS
from tests.support.tiny_models import tiny_model

QUANTIZED_CONFIGS: list[dict[str, Any]] = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fp8"},
    {"quant_method": "unheard of"},
]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(directory: Path) -> Any:
    return load_model(directory, dtype="fp32", device="cpu", max_model_len=None)


@pytest.mark.slow
@pytest.mark.parametrize("settings", QUANTIZED_CONFIGS, ids=lambda s: "-".join(map(str, s.values())))
def test_plain_weights_beside_a_quantization(tmp_path: Path, settings: dict[str, Any]) -> None:
    directory = tiny_model(tmp_path / "base")
    weights = load(directory).hf.state_dict()
    edit(directory / "config.json", quantization_config=settings)
    found = load(directory)
    assert all(torch.equal(found.hf.state_dict()[name], tensor) for name, tensor in weights.items())
    assert getattr(find_base(str(directory)).config, "quantization_config", None) is None
    stored = StoredModel(directory)
    adapter = write_adapter(tmp_path / "adapter", tiny_model(tmp_path / "same"), scale=0.1)
    member = Member("a", read_artifact(adapter, stored.describe("base"), LIMITS), 1.0)
    export(plan_export(stored, "base", [member]), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def as_int8(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": tensor.to(torch.int8), "SCB": tensor.abs().amax(1)}


def as_nf4(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8), "absmax": torch.ones(8)}


def as_gptq(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"qweight": torch.zeros(tensor.shape[1] // 8, tensor.shape[0], dtype=torch.int32)}


def as_fp8(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": tensor.to(torch.float8_e4m3fn), "weight_scale": torch.ones(1)}


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("pack", [as_int8, as_nf4, as_gptq, as_fp8])
def test_packed_weights_are_refused_by_their_tensors(
    tmp_path: Path, pack: Callable[[torch.Tensor], dict[str, torch.Tensor]], told: bool
) -> None:
    directory = tiny_model(tmp_path / "base")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        parts = pack(tensor) if name.endswith("_proj.weight") else {"weight": tensor}
        tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    if told:
        edit(directory / "config.json", quantization_config=QUANTIZED_CONFIGS[0])
    if pack is as_int8:
        assert load(directory).quantize == "int8"  # served as it is, but nothing is trained on it
    else:
        with pytest.raises(ModelRefused, match="quantized already"):
            load(directory)
    with pytest.raises(BaseModelError, match="quantized already"):
        find_base(str(directory))
    with pytest.raises(BaseModelError, match="quantized already"):
        load_config(directory)
    with pytest.raises(ArtifactError, match="holds quantized weights"):
        plan_export(StoredModel(directory), "base", [])


def test_masks_and_counts_are_no_packed_weights(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "base", "gpt2")
    tensors = load_file(directory / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    tensors["transformer.h.0.attn.positions"] = torch.arange(8)[None]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    assert packed_tensors(Checkpoint(directory)) == []


ODD_ENDS = [True, "</s>", [258, "x"], [[258]], {"id": 258}, -1, 10**6, 1.5, float("inf")]


@pytest.mark.parametrize("value", ODD_ENDS, ids=str)
def test_odd_end_tokens_are_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    directory = tiny_model(tmp_path / "base")
    edit(directory / "generation_config.json", eos_token_id=value)
    with caplog.at_level(logging.WARNING):
        assert load(directory).tokenizer.eos_ids == {258}
    assert "generation_config.json: eos_token_id holds" in caplog.text
    assert "the end tokens are those of config.json and of the tokenizer" in caplog.text
    assert find_base(str(directory)).eos_ids == {258}


BROKEN = [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 10**5]


@pytest.mark.parametrize("content", BROKEN, ids=lambda c: repr(c[:8]))
def test_a_broken_file_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    directory = tiny_model(tmp_path / "base")
    (directory / "generation_config.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load(directory).tokenizer.eos_ids == {258}
    assert "generation_config.json can't be read" in caplog.text
    assert find_base(str(directory)).eos_ids == {258}


@pytest.mark.parametrize(
    ("value", "ids"), [(7, {7}), ([7, 9], {7, 9}), (7.0, {7}), ([], set()), (None, {258}), ([7, 7], {7})]
)
def test_end_tokens_that_are_fine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any, ids: set[int]
) -> None:
    directory = tiny_model(tmp_path / "base")
    edit(directory / "generation_config.json", eos_token_id=value)
    found = read_generation(directory, plain_config(directory))
    assert set(found.eos_ids) == ids
    assert load(directory).tokenizer.eos_ids == ids | {258}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"temperature": "hot"}, {"do_sample": False, "temperature": 0.3}])
def test_settings_that_transformers_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    directory = tiny_model(tmp_path / "base")
    edit(directory / "generation_config.json", eos_token_id=[258, 7], **settings)
    with caplog.at_level(logging.WARNING):
        assert load(directory).tokenizer.eos_ids == {258, 7}
    assert "generation_config.json: only its end tokens are used" in caplog.text
