"""Adapters of MLX-LM: read as what they compute there, and refused where its config says something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manylora.adapters.format.base import BaseModel
from tests.support.foreign_adapters import (
    assert_same_change,
    converted,
    peft_adapter,
    read,
    refusal,
    tiny_base,
    write_mlx,
    written,
)


@pytest.fixture(scope="module")
def llama() -> BaseModel:
    return tiny_base("llama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox"])
def test_it_is_the_same_adapter(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    base = tiny_base(family)
    _, tensors = peft_adapter(tmp_path / "peft", base, family, dtype=dtype)
    write_mlx(tmp_path / "in", tensors, rank=4, scale=1.5, layers=2)
    found = converted(tmp_path / "in", tmp_path / "out", base)
    assert found.conversion.details()["format"] == "MLX"
    assert all(torch.equal(written(tmp_path / "out")[key], tensor) for key, tensor in tensors.items())
    assert_same_change(read(tmp_path / "out", base), read(tmp_path / "peft", base))
    assert read(tmp_path / "out", base).base_model_name == "mlx-community/tiny-4bit"


def test_dora(tmp_path: Path, llama: BaseModel) -> None:
    _, tensors = peft_adapter(tmp_path / "peft", llama, "llama", use_dora=True)
    write_mlx(tmp_path / "in", tensors, rank=4, scale=1.5, layers=2, kind="dora")
    converted(tmp_path / "in", tmp_path / "out", llama)
    found = read(tmp_path / "out", llama)
    assert found.kind == "LORA+DORA"
    assert_same_change(found, read(tmp_path / "peft", llama))


def test_some_blocks_and_some_modules(tmp_path: Path, llama: BaseModel) -> None:
    _, tensors = peft_adapter(tmp_path / "peft", llama, "llama")
    some = {k: t for k, t in tensors.items() if ".1." in k and ("q_proj" in k or "down" in k)}
    keys = ["self_attn.q_proj", "mlp.down_proj"]
    write_mlx(tmp_path / "in", some, rank=4, scale=2.0, layers=1, keys=keys)
    converted(tmp_path / "in", tmp_path / "out", llama)
    names = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    assert list(read(tmp_path / "out", llama).delta) == names


def test_embeddings_and_the_output_head(tmp_path: Path, llama: BaseModel) -> None:
    """MLX's layer of the embeddings: ``E[x] + scale · lora_a[x] lora_b``."""
    a, b = torch.rand(32, 4), torch.rand(4, 32)
    head_a, head_b = torch.rand(32, 4), torch.rand(4, 32)
    directory = write_mlx(
        tmp_path / "in", {}, rank=4, scale=1.5, layers=2, keys=["model.embed_tokens", "lm_head"]
    )
    tensors = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    tensors |= {"lm_head.lora_a": head_a, "lm_head.lora_b": head_b}
    save_file(tensors, directory / "adapters.safetensors")
    converted(directory, tmp_path / "out", llama)
    vocabulary = read(tmp_path / "out", llama).vocabulary
    assert vocabulary is not None
    for table, wanted in (
        (vocabulary.embedding, 1.5 * (a @ b).T),
        (vocabulary.head, 1.5 * (head_a @ head_b).T),
    ):
        assert table is not None
        assert table.a is not None
        assert table.b is not None
        torch.testing.assert_close(table.scaling * table.b @ table.a, wanted)


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
Q = "model.layers.0.self_attn.q_proj"


def _set(key: str, value: Any) -> Change:
    return lambda config, _: config.__setitem__(key, value)


def _parameter(key: str, value: Any) -> Change:
    return lambda config, _: config["lora_parameters"].__setitem__(key, value)


def _tensor(key: str, tensor: torch.Tensor) -> Change:
    return lambda _, tensors: tensors.__setitem__(key, tensor)


BROKEN: dict[str, tuple[Change, str]] = {
    "full": (_set("fine_tune_type", "full"), "fine_tune_type 'full' of MLX-LM is not served"),
    "no parameters": (_set("lora_parameters", None), "lora_parameters should be an object"),
    "no scale": (_parameter("scale", None), "scale should be a number"),
    "scale as text": (_parameter("scale", "20"), "scale should be a number"),
    "huge scale": (_parameter("scale", 10**400), "scale should be a number"),
    "alpha": (_parameter("alpha", 16), "has alpha 16 beside scale"),
    "rank": (_parameter("rank", 8), "is 4 in its tensors and 8 in the config"),
    "huge rank": (_parameter("rank", 10**9), "is 4 in its tensors and 1000000000 in the config"),
    "rank as text": (_parameter("rank", "4"), "rank should be a positive integer"),
    "new option": (_parameter("gate", 1), "lora_parameters has 'gate'"),
    "keys": (_parameter("keys", ["self_attn.q_proj"]), "lora_parameters.keys does not name"),
    "keys as text": (_parameter("keys", "q_proj"), "keys should be a list of names"),
    "fewer layers": (_set("num_layers", 1), "num_layers is 1, and there are tensors of earlier blocks"),
    "layers as text": (_set("num_layers", "all"), "num_layers should be an integer"),
    "dora without m": (_set("fine_tune_type", "dora"), "lacks m"),
    "m without dora": (_tensor(f"{Q}.m", torch.ones(32)), "has m"),
    "a stray": (_tensor("model.layers.0.self_attn.x_proj.lora_a", torch.ones(32, 4)), "unexpected tensors"),
    "experts": (_tensor("model.layers.0.mlp.switch.lora_a", torch.ones(2, 4, 32)), "unexpected tensors"),
    "another shape": (_tensor(f"{Q}.lora_b", torch.ones(5, 32)), "size mismatch"),
    "no matrix": (_tensor(f"{Q}.lora_a", torch.ones(32)), "size mismatch"),
    "half": (lambda _, tensors: tensors.__delitem__(f"{Q}.lora_b"), "lacks lora_b"),
    "NaN": (_tensor(f"{Q}.lora_b", torch.full((4, 32), torch.nan)), "NaN or infinite values"),
    "int": (_tensor(f"{Q}.lora_b", torch.ones(4, 32, dtype=torch.int8)), "has tensors of I8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, llama: BaseModel, case: str) -> None:
    change, message = BROKEN[case]
    _, tensors = peft_adapter(tmp_path / "peft", llama, "llama")
    directory = write_mlx(tmp_path / "in", tensors, rank=4, scale=1.5, layers=2)
    config = json.loads((directory / "adapter_config.json").read_text())
    mlx = load_file(directory / "adapters.safetensors")
    change(config, mlx)
    save_file(mlx, directory / "adapters.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    assert message in refusal(directory, tmp_path / "out", llama)


def test_checkpoints_beside_the_adapter_are_left_alone(tmp_path: Path, llama: BaseModel) -> None:
    _, tensors = peft_adapter(tmp_path / "peft", llama, "llama")
    directory = write_mlx(tmp_path / "in", tensors, rank=4, scale=1.5, layers=2)
    (directory / "0000100_adapters.safetensors").write_bytes(b"an earlier step")
    converted(directory, tmp_path / "out", llama)


def test_metadata_may_be_null(tmp_path: Path, llama: BaseModel) -> None:
    """MLX's own writer says so where there is none."""
    _, tensors = peft_adapter(tmp_path / "peft", llama, "llama")
    directory = write_mlx(tmp_path / "in", tensors, rank=4, scale=1.5, layers=2)
    content = (directory / "adapters.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": None, **json.loads(content[8 : 8 + length])}).encode()
    whole = len(header).to_bytes(8, "little") + header + content[8 + length :]
    (directory / "adapters.safetensors").write_bytes(whole)
    converted(directory, tmp_path / "out", llama)
