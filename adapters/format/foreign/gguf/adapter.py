"""LoRA adapters of llama.cpp: one GGUF file, read and written.

llama.cpp takes ``alpha / r`` of each module as its scale, or 1 where alpha is 0. Its rows of q and k are in
another order where an architecture's rotary embedding asks for it (:mod:`.architectures`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.files import FileFault
from manylora.adapters.format.foreign.canonical import plain_number
from manylora.adapters.format.foreign.change import Change, LowRank
from manylora.adapters.format.foreign.gguf.architectures import GgufBase, gguf_base
from manylora.adapters.format.foreign.gguf.reader import Metadata, read_gguf
from manylora.adapters.format.foreign.names import Rule

_TYPE, _KIND, _ARCHITECTURE = "general.type", "adapter.type", "general.architecture"
_ALPHA, _INVOCATION = "adapter.lora.alpha", "adapter.alora.invocation_tokens"
_STRAIGHT = "manylora.straight"  # A and B are not exchanged, whatever llama.cpp's converter does
_A, _B = ".weight.lora_a", ".weight.lora_b"
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def read_gguf_adapter(
    path: Path, base: BaseModel, max_bytes: int, faults: Faults
) -> tuple[Change, frozenset[Rule]] | None:
    """The adapter in a GGUF file, by the base's names; None, and a fault, where it can't be had."""
    try:
        metadata, tensors, dequantized = read_gguf(path, max_bytes)
    except FileFault as fault:
        faults.add(str(fault))
        return None
    _check_metadata(metadata, path.name, faults)
    named = gguf_base(base)
    if named is None:
        faults.add(_unknown(base))
        return None
    architecture = metadata.get(_ARCHITECTURE)
    if architecture != named.architecture:
        faults.add(
            f"{path.name} is made for the architecture {shown(architecture)}, the base is of "
            f"{named.architecture!r}"
        )
    pairs = _pairs(tensors, named, faults)
    if len(faults):
        return None
    rules = {Rule.LLAMA_CPP} | ({Rule.DEQUANTIZED} if dequantized else set())
    change = _change(pairs, metadata, named, rules, faults)
    return None if len(faults) else (change, frozenset(rules))


def _unknown(base: BaseModel) -> str:
    return (
        f"GGUF adapters of {base.architecture} can't be converted: llama.cpp's order of its rows is not known"
    )


def _check_metadata(metadata: Metadata, name: str, faults: Faults) -> None:
    if metadata.get(_TYPE) != "adapter":
        faults.add(f"{name} is no adapter: its general.type is {shown(metadata.get(_TYPE))}")
    elif metadata.get(_KIND) != "lora":
        faults.add(f"adapter.type {shown(metadata.get(_KIND))} in {name} is not served: only 'lora' is")
    alpha = metadata.get(_ALPHA)
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha < 0:
        faults.add(f"{_ALPHA} in {name} is {shown(alpha)}, not a number from 0 on")


def _pairs(tensors: Mapping[str, torch.Tensor], named: GgufBase, faults: Faults) -> Pairs:
    """A and B by llama.cpp's names; what is neither, or of no module of the base, is a fault."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    strays = []
    for name, tensor in tensors.items():
        ending = next((ending for ending in (_A, _B) if name.endswith(ending)), None)
        stem = name.removesuffix(ending or "")
        if ending is None or not (stem in named.modules or stem == named.embedding):
            strays.append(name)
        else:
            found.setdefault(stem, {})[ending] = tensor
    if strays:
        faults.add(
            f"unexpected tensors {some(strays, len(strays))}: not A and B of a linear layer of "
            f"{named.base.architecture}"
        )
    halves = [stem for stem, parts in found.items() if len(parts) < 2]
    if halves:
        faults.add(f"missing tensors: A or B of {some(halves, len(halves))}")
    return {stem: (parts[_A], parts[_B]) for stem, parts in found.items() if len(parts) == 2}


def _change(pairs: Pairs, metadata: Metadata, named: GgufBase, rules: set[Rule], faults: Faults) -> Change:
    exchanged = named.is_turned and not metadata.get(_STRAIGHT, False) and _is_exchanged(pairs, named, faults)
    modules: dict[str, LowRank] = {}
    tables: dict[str, LowRank] = {}
    for stem, (file_a, file_b) in pairs.items():
        a, b = file_a, file_b
        if a.ndim != 2 or b.ndim != 2:
            faults.add(f"A and B of {shown(stem)} are no matrices: {list(a.shape)} and {list(b.shape)}")
            continue
        if stem == named.embedding:
            assert named.base.vocabulary is not None, "what has a name is there"
            tables[named.base.vocabulary.embedding] = _scaled(a.T, b, metadata)
            continue
        module = named.modules[stem]
        if exchanged and module in named.base.modules:
            a, b = b.T, a.T
            rules.add(Rule.TRANSPOSED)
        if module in named.base.modules:
            b = _reordered(module, b, named, rules, faults)
        modules[module] = _scaled(a, b, metadata)
    tokens = metadata.get(_INVOCATION)
    options: dict[str, Any] = {} if not tokens else {"alora_invocation_tokens": list(tokens)}
    order = [name for name in (*named.base.modules, *modules) if name in modules]
    return Change({name: modules[name] for name in order}, tables, options)


def _scaled(a: torch.Tensor, b: torch.Tensor, metadata: Metadata) -> LowRank:
    alpha, rank = metadata[_ALPHA], max(b.shape[1], 1)
    return LowRank(a, b, plain_number(alpha) / rank if alpha else 1.0)


def _reordered(
    module: str, b: torch.Tensor, named: GgufBase, rules: set[Rule], faults: Faults
) -> torch.Tensor:
    order = named.row_order(module)
    if order is None:
        return b
    if isinstance(order, str):
        faults.add(f"B of {shown(module)} can't be brought into order: {order}")
        return b
    if len(order) != b.shape[0]:
        faults.add(f"B of {shown(module)} has {b.shape[0]} rows, {len(order)} are needed")
        return b
    rules.add(Rule.ROW_ORDER)
    own = torch.empty_like(b)
    own[order] = b
    return own


def _is_exchanged(pairs: Pairs, named: GgufBase, faults: Faults) -> bool:
    """Whether A and B are exchanged, as the converter does it: what the modules that are not square say."""
    said = set()
    for stem, (a, b) in pairs.items():
        module = named.base.modules.get(named.modules.get(stem, ""))
        if module is None or a.ndim != 2 or b.ndim != 2 or module.in_features == module.out_features:
            continue
        said.add((a.shape[1], b.shape[0]) == (module.out_features, module.in_features))
    if len(said) == 1:
        return said.pop()
    if pairs and any(named.modules.get(stem) in named.base.modules for stem in pairs):
        faults.add(
            f"A and B of {some(pairs, len(pairs))} may be either way round: llama.cpp's converter exchanges "
            f"them for {named.architecture}, and nothing but square modules is there to tell"
        )
    return False


def write_gguf_adapter(change: Change, path: Path, base: BaseModel, faults: Faults) -> None:
    """Write an adapter as llama.cpp reads it; what GGUF can't hold is a fault, and nothing is written then.

    Raises:
        OSError: the disk refused.
    """
    import gguf  # noqa: PLC0415  (slow to import)

    named = gguf_base(base)
    if named is None:
        faults.add(_unknown(base))
        return
    tensors = _tensors(change, named, faults)
    alpha = _one_alpha(change, faults)
    if len(faults):
        return
    writer = gguf.GGUFWriter(path, named.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(_KIND, "lora")
    writer.add_float32(_ALPHA, alpha)
    if named.is_turned:
        writer.add_bool(_STRAIGHT, True)
    tokens = change.options.get("alora_invocation_tokens")
    if tokens:
        writer.add_key_value(_INVOCATION, list(tokens), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    for name, tensor in tensors.items():
        _add(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(change: Change, named: GgufBase, faults: Faults) -> dict[str, torch.Tensor]:
    stems = {module: stem for stem, module in named.modules.items()}
    tensors = {}
    for module, part in change.modules.items():
        if module not in stems:
            faults.add(f"GGUF has no name for {shown(module)}")
            continue
        b = part.b
        order = named.row_order(module) if module in named.base.modules else None
        if isinstance(order, str):
            faults.add(f"B of {shown(module)} can't be brought into order: {order}")
            continue
        tensors[f"{stems[module]}{_A}"] = part.a
        tensors[f"{stems[module]}{_B}"] = b if order is None else b[order]
    for part in change.tables.values():
        tensors[f"{named.embedding}{_A}"], tensors[f"{named.embedding}{_B}"] = part.a.T, part.b
    return tensors


def _one_alpha(change: Change, faults: Faults) -> float:
    """The one alpha that GGUF has for all modules, whose ranks may differ."""
    parts = {**change.modules, **change.tables}
    alphas = {name: plain_number(part.scaling * part.rank) for name, part in parts.items()}
    if len(set(alphas.values())) > 1:
        listed = ", ".join(f"{alpha:g}" for alpha in sorted(set(alphas.values()))[:4])
        faults.add(f"GGUF holds one alpha for all modules, and the adapter has several ({listed})")
    alpha = float(np.float32(next(iter(alphas.values()), 0)))
    if not alpha > 0:
        faults.add(f"GGUF can't hold the alpha {alpha:g}: llama.cpp takes 0 for a scale of 1")
    return alpha


def _add(writer: Any, name: str, tensor: torch.Tensor) -> None:
    import gguf  # noqa: PLC0415  (slow to import)

    kind = gguf.GGMLQuantizationType[_NAMES[tensor.dtype]]
    plain = tensor.contiguous()
    if tensor.dtype is torch.bfloat16:  # which NumPy does not have: its bytes
        rows = plain.view(torch.uint8).view(*tensor.shape[:-1], -1).numpy()
        writer.add_tensor(name, rows, raw_dtype=kind)
    else:
        writer.add_tensor(name, plain.numpy(), raw_dtype=kind)
