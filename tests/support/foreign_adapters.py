"""Adapters as other tools write them, made from PEFT's tensors: names, orders and files of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.foreign.convert import Converted, convert
from tests.support.adapters import base_model_of, lora_config, lora_tensors, write_artifact

PREFIX = "base_model.model."
LIMITS = Limits(max_rank=64, max_bytes=1 << 30)
ALL_TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
_SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
}
Tensors = dict[str, torch.Tensor]


def tiny_base(family: str, layers: int = 2) -> BaseModel:
    """A base of a family, of which there are no weights."""
    count = {"num_hidden_layers": layers, **({"n_layer": layers} if family == "gpt2" else {})}
    with torch.device("meta"):
        config = AutoConfig.for_model(family, **{**_SIZES, **_OWN[family], **count})
        return base_model_of(AutoModelForCausalLM.from_config(config))


def config_only(directory: Path, family: str) -> Path:
    """A directory with the config of :func:`tiny_base`'s model and nothing else."""
    config = AutoConfig.for_model(family, **{**_SIZES, **_OWN[family]})
    config.architectures = [tiny_base(family).architecture]
    config.save_pretrained(directory)
    return directory


def peft_adapter(
    directory: Path, base: BaseModel, family: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[dict[str, Any], Tensors]:
    """A PEFT adapter on all linear layers, written to ``directory``: its config and its tensors."""
    config = lora_config(rank=4, alpha=6, targets=ALL_TARGETS[family], **options)
    tensors = lora_tensors(base, config, seed=5, dtype=dtype)
    write_artifact(directory, config, tensors)
    return config, tensors


def converted(directory: Path, into: Path, base: BaseModel) -> Converted:
    """The adapter of another tool in ``directory``, written to ``into`` as PEFT's."""
    found = convert(directory, base, LIMITS)
    assert found is not None, "taken for PEFT's"
    into.mkdir(exist_ok=True)
    found.write(into)
    return found


def refusal(directory: Path, into: Path, base: BaseModel) -> str:
    """Why the adapter of another tool can't be converted, or its result can't be served."""
    try:
        converted(directory, into, base)
        read(into, base)
    except ArtifactError as error:
        return str(error)
    raise AssertionError("it was taken")


def written(directory: Path) -> Tensors:
    """The tensors of the PEFT adapter in ``directory``."""
    return load_file(directory / WEIGHTS_NAME)


def read(directory: Path, base: BaseModel) -> Artifact:
    """The checked artifact in ``directory``."""
    return read_artifact(directory, base, LIMITS)


def assert_same_change(one: Artifact, other: Artifact) -> None:
    """Both do the same, to the bit in A and B and but for the last place of a float64 in the scale."""
    assert one.delta.keys() == other.delta.keys()
    for name, delta in one.delta.items():
        same = other.delta[name]
        assert torch.equal(delta.a, same.a), name
        assert torch.equal(delta.b, same.b), name
        assert abs(delta.scaling - same.scaling) <= 1e-12 * abs(delta.scaling), name
        assert (delta.magnitude is None) == (same.magnitude is None)
        assert delta.magnitude is None or torch.equal(delta.magnitude, same.magnitude)  # type: ignore[arg-type]


def renamed(tensors: Mapping[str, torch.Tensor], rename: Callable[[str], str]) -> Tensors:
    """The same tensors under other names."""
    return {rename(key): tensor for key, tensor in tensors.items()}


def write_mlx(
    directory: Path,
    tensors: Tensors,
    *,
    rank: int,
    scale: float,
    layers: int,
    kind: str = "lora",
    **more: Any,
) -> Path:
    """An adapter as MLX-LM's trainer writes it, from PEFT's tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    turned = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        name = name.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b")
        name = name.replace(".lora_magnitude_vector", ".m")
        turned[name] = (tensor.T if tensor.ndim == 2 else tensor).contiguous()
    save_file(turned, directory / "adapters.safetensors")
    config = {
        "adapter_path": "adapters",
        "fine_tune_type": kind,
        "lora_parameters": {"rank": rank, "dropout": 0.0, "scale": scale, **more},
        "model": "mlx-community/tiny-4bit",
        "num_layers": layers,
        "optimizer": "adam",
        "seed": 0,
        "train": True,
    }
    (directory / CONFIG_NAME).write_text(json.dumps(config))
    return directory


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    architecture: str = "llama",
    alpha: float = 6.0,
    kind: str = "F32",
    general_type: str = "adapter",
    adapter_type: str = "lora",
) -> Path:
    """A GGUF file with tensors under llama.cpp's names, which this does not know."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(general_type)
    writer.add_string("adapter.type", adapter_type)
    writer.add_float32("adapter.lora.alpha", alpha)
    number = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        writer.add_tensor(name, gguf.quantize(tensor.float().contiguous().numpy(), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_cpp_tensors(tensors: Mapping[str, torch.Tensor], heads: int, kv_heads: int) -> Tensors:
    """PEFT's tensors of a Llama as llama.cpp has them: its names, and its order of the rows of q and k."""
    found = {}
    for key, tensor in tensors.items():
        block, module = key.removeprefix(f"{PREFIX}model.layers.").split(".", 1)
        module, part = module.rsplit(".lora_", 1)
        ending = {"A.weight": "lora_a", "B.weight": "lora_b"}[part]
        count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(module)
        if ending == "lora_b" and count is not None:
            rows, rank = tensor.shape
            tensor = tensor.reshape(count, 2, rows // count // 2, rank).swapaxes(1, 2).reshape(rows, rank)  # noqa: PLW2901
        found[f"blk.{block}.{_LLAMA_NAMES[module]}.weight.{ending}"] = tensor
    return found
