"""A tiny Hugging Face model as a GGUF file, its tensors in types that are asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.support.gguf_metadata import write_config

KindOf = Callable[[str], str]  # of a tensor by llama.cpp's name
# llama.cpp's architecture of a model type that is called otherwise there.
_ARCHITECTURES = {"gemma3_text": "gemma3", "olmo3": "olmo2"}
_REORDERED = ("llama", "granite", "smollm3")  # q and k, by llama.cpp's converter
_NORMS_PLUS_ONE = ("gemma", "gemma2", "gemma3_text")


def gguf_name(name: str, config: dict[str, Any]) -> str:
    """llama.cpp's name of a tensor, as its own table has it."""
    kind = gguf.MODEL_ARCH[_architecture(config).upper()]
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def _architecture(config: dict[str, Any]) -> str:
    model_type: str = config["model_type"]
    return _ARCHITECTURES.get(model_type, model_type)


def write_gguf_model(model: Path, file: Path, kind_of: KindOf, **metadata: Any) -> Path:
    """Write the model in ``model`` to ``file``; returns the file. ``metadata`` replaces or adds entries."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(file, _architecture(config))
    write_config(writer, config)
    _write_tokenizer(writer, model)
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, raw, kind in stored(model, kind_of):
        writer.add_tensor(gguf_name(name, config), raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_gguf_values(model: Path, directory: Path, kind_of: KindOf) -> Path:
    """Copy ``model`` with the values that :func:`write_gguf_model` stores, by ``gguf.dequantize``."""
    shutil.copytree(model, directory)
    config = json.loads((model / "config.json").read_text())
    tensors = {}
    for name, raw, kind in stored(model, kind_of):
        values = torch.from_numpy(np.ascontiguousarray(gguf.dequantize(raw, kind), np.float32))
        heads = _heads(name, config)
        if heads:
            values = values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        tensors[name] = values - 1 if _is_shifted(name, config) else values
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def stored(model: Path, kind_of: KindOf) -> list[tuple[str, np.ndarray, gguf.GGMLQuantizationType]]:
    """Each tensor's name, bytes or values, and type, as the file has them."""
    config = json.loads((model / "config.json").read_text())
    found = []
    for name, tensor in load_file(model / "model.safetensors").items():
        weight = tensor.float()
        heads = _heads(name, config)
        if heads:  # as llama.cpp's converter orders the rows of q and k
            weight = weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        if _is_shifted(name, config):
            weight = weight + 1
        kind = gguf.GGMLQuantizationType[kind_of(gguf_name(name, config)) if weight.dim() > 1 else "F32"]
        found.append((name, encoded(weight.numpy(), kind), kind))
    return found


def encoded(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """``weight`` [out, in] in a type; in one that gguf has no encoder for, random blocks of like size."""
    try:
        return np.asarray(gguf.quantize(weight, kind))
    except NotImplementedError:
        return random_blocks(kind, weight.shape, float(weight.std()))


def random_blocks(
    kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], size: float, seed: int = 0
) -> np.ndarray:
    """Bytes [out, bytes of a row] of blocks whose values have about the standard deviation ``size``."""
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (int(np.prod(shape)) // weights, nbytes), dtype=np.uint8)
    for place in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]:
        blocks[:, place : place + 2] = np.full((len(blocks), 1), 1, np.float16).view(np.uint8)
    typical = gguf.dequantize(blocks, kind).std()
    for place in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]:
        scales = random.uniform(0.5, 1.5, (len(blocks), 1)) * size / typical
        blocks[:, place : place + 2] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def _heads(name: str, config: dict[str, Any]) -> int:
    if config["model_type"] not in _REORDERED:
        return 0
    heads = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
    return next((int(config[key]) for part, key in heads.items() if part in name), 0)


def _is_shifted(name: str, config: dict[str, Any]) -> bool:
    return config["model_type"] in _NORMS_PLUS_ONE and name.endswith("norm.weight")


def _write_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens.append("th")  # files without merges are refused
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
