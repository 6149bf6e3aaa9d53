"""Copies of a model as GPTQ's and AWQ's tools write them, packed nibble by nibble."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

# The outputs, of eight consecutive ones, that an AWQ word has from its lowest bits upward.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Grouping:
    """How a copy is quantized."""

    method: str  # "gptq" or "awq"
    group_size: int = 32
    version: int = 1  # of GPTQ's format: 1 stores zero points less one, taken from the packed words
    act_order: bool = False  # inputs are in groups that do not follow each other
    symmetric: bool = False  # all zero points are 8

    def settings(self) -> dict[str, Any]:
        """The ``quantization_config``."""
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group_size, "version": "gemm"}
        form = {"checkpoint_format": "gptq_v2"} if self.version == 2 else {}
        shared = {"quant_method": "gptq", "bits": 4, "group_size": self.group_size}
        return {**shared, "desc_act": self.act_order, **form}


def write_grouped(model: Path, directory: Path, how: Grouping, *, keep: tuple[str, ...] = ()) -> Path:
    """Copy ``model``, linear layers in 4 bits; those with one of ``keep`` in their names stay plain."""
    shutil.copytree(model, directory)
    random = np.random.default_rng(3)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(model / "model.safetensors").items():
        linear = "_proj.weight" in name and not any(part in name for part in keep)
        if not linear:
            tensors[name] = weight.half()
            continue
        module = name.removesuffix(".weight")
        parts = quantized(weight.float().numpy(), how, random)
        tensors |= {f"{module}.{part}": tensor for part, tensor in packed(parts, how).items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": how.settings()}))
    return directory


@dataclass(frozen=True)
class Quantized:
    """A matrix in 4 bits, nothing packed."""

    codes: np.ndarray  # [in, out] 0 to 15
    zeros: np.ndarray  # [groups, out] 0 to 15
    scales: np.ndarray  # [groups, out] float16
    group: np.ndarray  # [in]

    def exact(self) -> np.ndarray:
        """[out, in] float64: each code less its zero point, times its scale."""
        steps = self.codes.astype(np.float64) - self.zeros[self.group]
        return np.ascontiguousarray((steps * self.scales[self.group].astype(np.float64)).T)


def quantized(weight: np.ndarray, how: Grouping, random: np.random.Generator) -> Quantized:
    """``weight`` [out, in] to the nearest code, with a scale and a zero point for each group."""
    inputs = weight.shape[1]
    size = inputs if how.group_size == -1 else how.group_size
    group = np.arange(inputs) // size
    if how.act_order:
        group = random.permutation(group)
    groups = int(group.max()) + 1
    low = np.stack([weight.T[group == g].min(0) for g in range(groups)])
    high = np.stack([weight.T[group == g].max(0) for g in range(groups)])
    scales = np.maximum((high - low) / 15, 1e-4).astype(np.float16)
    zeros = np.full_like(low, 8) if how.symmetric else np.clip(np.round(-low / scales), 0, 15)
    if not how.symmetric:
        zeros[0, 0] = 0  # which version 1 of GPTQ's format borrows for
    codes = np.clip(np.round(weight.T / scales[group] + zeros[group]), 0, 15)
    return Quantized(codes.astype(np.int64), zeros.astype(np.int64), scales, group)


def packed(parts: Quantized, how: Grouping) -> dict[str, torch.Tensor]:
    """The tensors of a layer as the method's files have them."""
    scales = torch.from_numpy(parts.scales)
    if how.method == "awq":
        order = _AWQ_ORDER
        return {
            "qweight": _words(parts.codes, order),
            "qzeros": _words(parts.zeros, order),
            "scales": scales,
        }
    straight = tuple(range(8))
    return {
        "qweight": _words(parts.codes.T, straight).T.contiguous(),
        "qzeros": _words(parts.zeros, straight) - (0x11111111 if how.version == 1 else 0),
        "scales": scales,
        "g_idx": torch.from_numpy(parts.group.astype(np.int32)),
    }


def _words(codes: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
    """Codes [n, 8 m] as words [n, m] int32: nibble i of a word is code order[i] of its eight."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for place, code in enumerate(order):
            words[:, word] |= (codes[:, 8 * word + code] & 15).astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32))


def write_dequantized(model: Path, directory: Path, how: Grouping, *, keep: tuple[str, ...] = ()) -> Path:
    """Copy ``model`` with the weights that :func:`write_grouped` stores codes of, in float32."""
    shutil.copytree(model, directory)
    random = np.random.default_rng(3)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        linear = "_proj.weight" in name and not any(part in name for part in keep)
        if linear:
            parts = quantized(weight.float().numpy(), how, random)
            tensors[name] = torch.from_numpy(parts.exact().astype(np.float32))
        else:
            tensors[name] = weight.half().float()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory
