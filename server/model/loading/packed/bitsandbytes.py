"""The weights of a repository that bitsandbytes quantized, in the bits that it has, without that library.

A matrix in 4 bits is ``weight`` (two codes a byte, the first in the high bits), ``weight.absmax``, the values
of the sixteen codes in ``weight.quant_map``, and ``weight.quant_state.bitsandbytes__nf4`` or fp4, JSON in bytes.
Scales that are quantized once more are codes of ``weight.nested_quant_map``, in blocks with a scale each in
``weight.nested_absmax``. A matrix in 8 bits is ``weight`` and ``SCB``, an output's largest absolute value.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.base_models.checkpoint import Checkpoint
from manylora.adapters.format.faults import shown
from manylora.server.errors import ModelRefused
from manylora.server.kernels.codes import Codes, Kind
from manylora.server.model.decoders.quantize import STEP
from manylora.server.model.loading.packed.assembly import PackedWeights

_STATE = ".quant_state.bitsandbytes__"
_FORMAT = ".weight_format"
_ROWS = 0  # the one format that is served: row by row


def bitsandbytes_weights(directory: Path, dtype: torch.dtype, device: torch.device) -> PackedWeights:
    """The tensors of the repository in ``directory``.

    Raises:
        ModelRefused: its tensors do not fit each other, or their layout is not served.
        BaseModelError: its files can't be read.
    """
    checkpoint = Checkpoint(directory)
    codes: dict[str, Codes] = {}
    taken: set[str] = set()
    tables: dict[str, torch.Tensor] = {}  # one for all layers
    parts = _parts(checkpoint)
    for name in sorted(checkpoint):
        weight, found, kind = name.rpartition(_STATE)
        if found:
            own = {n: checkpoint[n] for n in parts[weight]}
            taken |= own.keys()
            module = weight.removesuffix(".weight")
            codes[module] = _four_bits(f"{directory}: {module}", weight, kind, own, tables)
        elif name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            taken |= {name, f"{module}.weight", f"{module}{_FORMAT}"}
            codes[module] = _eight_bits(f"{directory}: {module}", module, checkpoint)
    plain = {name: checkpoint[name] for name in checkpoint if name not in taken}
    for name, tensor in plain.items():
        if tensor.dtype in (torch.int8, torch.uint8):
            raise ModelRefused(f"{directory}: {shown(name)} is in few bits without saying how")
        plain[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return PackedWeights({name: _on(device, layer) for name, layer in codes.items()}, plain)


def kind_of(weights: PackedWeights) -> str:
    """What ``--quantize`` calls it: "nf4" or "int8"; or "fp4"."""
    tables = [layer.table for layer in weights.codes.values() if layer.kind is not Kind.BYTES]
    if not tables:
        return "int8"
    return "fp4" if tables[0] is not None and tables[0][1] > 0 else "nf4"


def _parts(checkpoint: Checkpoint) -> Mapping[str, list[str]]:
    """The tensors of each weight by its name: itself, and those below it."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in checkpoint:
        before, weight, _ = name.partition(".weight.")
        found[f"{before}.weight" if weight else name].append(name)
    return found


def _four_bits(
    name: str, weight: str, kind: str, parts: Mapping[str, torch.Tensor], tables: dict[str, torch.Tensor]
) -> Codes:
    state = _state(name, parts[f"{weight}{_STATE}{kind}"])
    shape, block = state.get("shape"), state.get("blocksize")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ModelRefused(f"{name}: its quant_state has the shape {shown(shape)}")
    outputs, inputs = shape
    if type(block) is not int or block < 1 or inputs % block or inputs % 2:
        raise ModelRefused(f"{name}: 4-bit blocks of {shown(block)} weights go across rows of {inputs}")
    scales = _scales(name, weight, state, parts)
    codes, values = parts.get(weight), parts.get(f"{weight}.quant_map")
    if codes is None or values is None:
        raise ModelRefused(f"{name}: its {'weight' if codes is None else 'quant_map'} is missing")
    stored = codes.view(torch.uint8) if codes.is_contiguous() else codes
    if stored.dtype != torch.uint8 or stored.numel() * 2 != outputs * inputs or values.numel() != 16:
        raise ModelRefused(f"{name}: its codes do not fit a weight of {outputs} x {inputs} in 4 bits")
    if scales.numel() * block != outputs * inputs:
        raise ModelRefused(f"{name}: its absmax does not fit a weight of {outputs} x {inputs}")
    table = values.float().view(-1)
    known = tables.setdefault(kind, table)
    return Codes(
        Kind.NIBBLES,
        stored.view(outputs, inputs // 2),
        scales.view(outputs, inputs // block),
        block,
        table=known if torch.equal(known, table) else table,
    )


def _scales(
    name: str, weight: str, state: Mapping[str, Any], parts: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """One for each block, float32 [blocks]: as ``bitsandbytes.functional.dequantize_4bit`` makes them."""
    scales = parts.get(f"{weight}.absmax")
    if scales is None:
        raise ModelRefused(f"{name}: its absmax is missing")
    if scales.dtype != torch.uint8:
        return scales.float().view(-1)
    values, largest = (parts.get(f"{weight}.nested_{part}") for part in ("quant_map", "absmax"))
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if values is None or largest is None or type(block) is not int or not isinstance(offset, float):
        raise ModelRefused(f"{name}: its scales are quantized, and not said how")
    if values.numel() != 256 or largest.numel() * block < scales.numel() or block < 1:
        raise ModelRefused(f"{name}: its nested scales do not fit {scales.numel()} blocks")
    own = largest.float().view(-1).repeat_interleave(block)[: scales.numel()]
    return values.float().view(-1)[scales.view(-1).int()] * own + offset


def _state(name: str, stored: torch.Tensor) -> Mapping[str, Any]:
    try:
        state = json.loads(bytes(stored.to(torch.uint8).tolist()))
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{name}: its quant_state can't be read: {error}") from None
    return state if isinstance(state, dict) else {}


def _eight_bits(name: str, module: str, checkpoint: Checkpoint) -> Codes:
    weight, scales = checkpoint.get(f"{module}.weight"), checkpoint[f"{module}.SCB"]
    layout = checkpoint.get(f"{module}{_FORMAT}")
    if layout is not None and int(layout.view(-1)[0]) != _ROWS:
        raise ModelRefused(f"{name}: its weight_format {int(layout.view(-1)[0])} is not served: 0 is")
    if weight is None or weight.dtype != torch.int8 or weight.dim() != 2 or scales.numel() != len(weight):
        raise ModelRefused(f"{name}: its weight and SCB are no matrix in 8 bits")
    return Codes(Kind.BYTES, weight, scales.float().view(-1, 1), weight.shape[1], factor=STEP)


def _on(device: torch.device, codes: Codes) -> Codes:
    table = None if codes.table is None else codes.table.to(device)
    packed, scales = codes.packed.to(device), codes.scales.to(device)
    return replace(codes, packed=packed, scales=scales, table=table)
