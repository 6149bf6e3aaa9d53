"""The weights of a GPTQ or AWQ repository, in the 4 bits that it has.

Both have four tensors a layer: ``qweight``, ``qzeros``, ``scales`` and, of GPTQ, ``g_idx``. What a checkpoint
says of itself in ``quantization_config`` is checked against their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.base_models.checkpoint import Checkpoint
from manylora.adapters.format.faults import shown
from manylora.server.errors import ModelRefused
from manylora.server.kernels.codes import Codes
from manylora.server.model.loading.packed.assembly import PackedWeights
from manylora.server.model.loading.packed.words import from_awq, from_gptq

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_BITS = 4
_PER_WORD = 8  # codes in an int32
_SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class _Layout:
    """How a repository stores its codes."""

    method: str  # "gptq" or "awq"
    group_size: int  # inputs that share a scale; -1: all of them
    stored_less: int  # by how much less zero points are stored


def group_weights(
    directory: Path, settings: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> PackedWeights:
    """The tensors of the repository in ``directory``, whose ``quantization_config`` is ``settings``.

    Raises:
        ModelRefused: it is not in 4 bits or of a variant that is not served, by its name, or its tensors do
            not fit each other.
        BaseModelError: its files can't be read.
    """
    layout = _layout(directory, settings)
    checkpoint = Checkpoint(directory)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    plain: dict[str, torch.Tensor] = {}
    codes: dict[str, Codes] = {}
    names = {name.rpartition(".")[0] for name in checkpoint if name.endswith(".qweight")}
    for name in checkpoint:
        module, _, part = name.rpartition(".")
        if module in names and part in _PARTS:
            layers.setdefault(module, {})[part] = checkpoint[name].to(device)
            if len(layers[module]) == len(_parts(checkpoint, module)):
                codes[module] = _codes(f"{directory}: {module}", layers.pop(module), layout)
        else:
            tensor = checkpoint[name]
            plain[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return PackedWeights(codes, plain)


def _parts(checkpoint: Checkpoint, module: str) -> list[str]:
    return [part for part in _PARTS if f"{module}.{part}" in checkpoint]


def _layout(directory: Path, settings: Mapping[str, Any]) -> _Layout:
    method = settings.get("quant_method")
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != _BITS:
        raise ModelRefused(
            f"{directory}: {_title(method)} in {shown(bits)} bits is not served: {_BITS} bits are"
        )
    size = settings.get("group_size", settings.get("q_group_size", -1))
    if type(size) is not int or not (size == -1 or size > 0):
        raise ModelRefused(f"{directory}: the group_size {shown(size)} of its quantization_config is no size")
    if method == "gptq":
        form = "marlin" if settings.get("is_marlin_format") else settings.get("checkpoint_format") or "gptq"
        if form not in ("gptq", "gptq_v2"):
            raise ModelRefused(f"{directory}: GPTQ's checkpoint_format {shown(form)} is not served")
        return _Layout("gptq", size, 1 if form == "gptq" else 0)
    version = settings.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise ModelRefused(f"{directory}: AWQ's version {shown(version)} is not served: gemm is")
    return _Layout("awq", size, 0)


def _title(method: object) -> str:
    return str(method).upper()


def _codes(name: str, parts: Mapping[str, torch.Tensor], layout: _Layout) -> Codes:
    missing = [part for part in _PARTS[:3] if part not in parts]
    if missing:
        raise ModelRefused(f"{name} has no {missing[0]}")
    qweight, qzeros, scales = (parts[part] for part in _PARTS[:3])
    if qweight.dtype != torch.int32 or qzeros.dtype != torch.int32 or scales.dtype not in _SCALES:
        raise ModelRefused(f"{name}: its codes are {qweight.dtype}, its scales {scales.dtype}: not served")
    if any(part.dim() != 2 for part in (qweight, qzeros, scales)):
        raise ModelRefused(f"{name}: its parts are no matrices")
    packed_inputs = layout.method == "gptq"
    inputs = len(qweight) * (_PER_WORD if packed_inputs else 1)
    outputs = qweight.shape[1] * (1 if packed_inputs else _PER_WORD)
    size = inputs if layout.group_size == -1 else layout.group_size
    groups = -(-inputs // size)
    wanted = {"scales": (groups, outputs), "qzeros": (groups, outputs // _PER_WORD)}
    for part, shape in wanted.items():
        if tuple(parts[part].shape) != shape or inputs % 2:
            raise ModelRefused(
                f"{name}: {part} has the shape {list(parts[part].shape)}, and {list(shape)} would fit "
                f"{inputs} inputs in groups of {size} and {outputs} outputs in {_BITS} bits"
            )
    if not packed_inputs:
        if inputs % size:
            raise ModelRefused(f"{name}: {inputs} inputs are no groups of {size}")
        return from_awq(qweight, qzeros, scales)
    group = _group_order(name, parts.get("g_idx"), inputs, size, groups)
    return from_gptq(qweight, qzeros, scales, group, stored_less=layout.stored_less)


def _group_order(
    name: str, stored: torch.Tensor | None, inputs: int, size: int, groups: int
) -> torch.Tensor | None:
    """The group of each input [in] int32; None where whole groups follow each other."""
    straight = torch.arange(inputs, dtype=torch.int32) // size
    found = straight if stored is None else stored.to("cpu", torch.int32)
    if found.shape != straight.shape or not bool(((found >= 0) & (found < groups)).all()):
        raise ModelRefused(f"{name}: its g_idx does not name a group of {groups} for each of {inputs} inputs")
    if torch.equal(found, straight) and inputs % size == 0:
        return None
    return found if stored is None else found.to(stored.device)
