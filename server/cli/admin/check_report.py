"""What can be said of an adapter from its files and a base's config: kind, fit, cost, faults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.errors import ArtifactError, SourceMissing
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel, TargetModule, matrices_of
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.reader import MAX_RANK
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME, FileFault, open_regular, read_config
from manylora.adapters.format.foreign.file_names import GGUF, foreign_weights, may_be_weights
from manylora.adapters.format.foreign.gguf.reader import read_gguf_header
from manylora.adapters.format.foreign.mlx import is_mlx
from manylora.adapters.format.foreign.reading import in_pefts_form
from manylora.server.model.pages.packing import block_size, elements

_LIMITS = Limits(MAX_RANK, 1 << 40)
_ITEM_BYTES = {"bf16": 2, "fp32": 4}

Report = dict[str, Any]


def report(path: Path, base: BaseModel | None, parameters: int) -> Report:
    """Everything about the adapter at ``path``; faults are told in it, not raised.

    ``parameters``: numbers that the base consists of.

    Raises:
        SourceMissing: there is no adapter.
        StoreError: the disk refused.
    """
    _check_present(path)
    if base is None:
        return _without_base(path)
    found: Report = {
        **_without_base(path),
        "base": {"name": base.name, "architecture": base.architecture},
        "faults": [],
        "total_modules": len(base.modules) + len(base.experts),
    }
    try:
        with in_pefts_form(path, base, _LIMITS) as (directory, conversion):
            found["converted_from"] = None if conversion is None else conversion.details()
            artifact = read_artifact(directory, base, _LIMITS)
    except ArtifactError as error:
        return {**found, "fits": False, "faults": list(error.faults)}
    return {
        **found,
        "fits": True,
        "kind": artifact.kind,
        "rank": artifact.rank,
        "modules": base.count_changed(artifact.delta),
        "trained_on": artifact.base_model_name,
        "notes": list(artifact.notes),
        "cost": _cost(artifact, base, parameters),
    }


def _check_present(path: Path) -> None:
    """Raise SourceMissing where nothing of an adapter is at ``path``."""
    if path.is_file():
        if not may_be_weights(path.name):
            raise SourceMissing(f"{path} is not a file that holds an adapter: .gguf or .safetensors")
        return
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise SourceMissing(f"no adapter at {path}: {(error.strerror or 'not a path').lower()}") from None
    if not {CONFIG_NAME, WEIGHTS_NAME} & names and not foreign_weights(names):
        raise SourceMissing(f"no adapter at {path}: neither {CONFIG_NAME} nor weights")


def _without_base(path: Path) -> Report:
    """What the config, or a GGUF file's header, says by itself."""
    found: Report = {
        "kind": None,
        "rank": None,
        "modules": None,
        "total_modules": None,
        "trained_on": None,
        "base": None,
        "fits": None,
        "converted_from": None,
        "notes": [],
        "cost": None,
        "faults": [],
    }
    weights = path if path.is_file() else _foreign(path)
    if weights is not None and weights.name.endswith(GGUF):
        return found | _of_gguf(weights)
    directory = path.parent if path.is_file() else path
    try:
        config = read_config(directory / CONFIG_NAME)
    except FileFault as fault:
        needed = weights is None
        return found | {"faults": [str(fault)] if needed else []}
    if is_mlx(config):
        given = config.get("lora_parameters")
        rank = given.get("rank") if isinstance(given, Mapping) else None
        dora = config.get("fine_tune_type") == "dora"
        said = {"kind": "LORA+DORA" if dora else "LORA", "rank": rank, "trained_on": config.get("model")}
        return found | said | {"converted_from": {"format": "MLX", "file": "", "rules": []}}
    faults = Faults()
    parsed = parse_config(config, faults)
    if parsed is not None:
        found |= {"kind": parsed.served_as, "rank": parsed.r or None, "trained_on": parsed.base_model_name}
        found["notes"] = list(parsed.notes)
    try:
        faults.raise_any()
    except ArtifactError as error:
        found["faults"] = list(error.faults)
    return found


def _foreign(directory: Path) -> Path | None:
    names = foreign_weights([entry.name for entry in directory.iterdir()])
    return directory / names[0] if len(names) == 1 else None


def _of_gguf(path: Path) -> Report:
    try:
        with open_regular(path) as file:
            header = read_gguf_header(file, path.name)
    except FileFault as fault:
        return {"faults": [str(fault)]}
    ranks = [t.shape[-1] for name, t in header.tensors.items() if name.endswith(".lora_b")]
    architecture = header.metadata.get("general.architecture")
    faults = []
    if header.metadata.get("general.type") != "adapter":
        faults.append(f"{path.name} is no adapter: its general.type is not 'adapter'")
    return {
        "kind": "LORA",
        "rank": max(ranks, default=None),
        "trained_on": None
        if architecture is None
        else f"an architecture that llama.cpp calls {architecture}",
        "converted_from": {"format": "GGUF", "file": path.name, "rules": []},
        "faults": faults,
    }


def _changeable(base: BaseModel) -> Mapping[str, TargetModule]:
    """All that adapters may change beside the vocabulary, by name."""
    experts = {module.name: module for stack in base.experts.values() for module in matrices_of(stack)}
    return {**base.modules, **base.norms, **experts}


class _Shapes:
    """The base's biases by their presence: all that the size of an adapter depends on."""

    def __init__(self, base: BaseModel, names: list[str]) -> None:
        modules = _changeable(base)
        self._modules = [modules[name] for name in names]

    def weight(self, index: int) -> torch.Tensor:
        module = self._modules[index]
        return torch.empty(module.out_features, module.in_features, device="meta")

    def bias(self, index: int) -> torch.Tensor | None:
        module = self._modules[index]
        return torch.empty(0) if module.bias else None


def _cost(artifact: Artifact, base: BaseModel, parameters: int) -> Report:
    """An estimate: bytes of its pages, all of which a token reads, beside those of the base's weights.

    Changes of a module's inputs take a product more with its weight, which is read again for them.

    A token that runs the base alone reads each of its weights once, so the ratio is about that of the time,
    as far as reading memory is what a step waits for.
    """
    names, modules = list(artifact.delta), _changeable(base)
    shapes = _Shapes(base, names)
    count = sum(
        elements(artifact.delta[name], modules[name], index, shapes) for index, name in enumerate(names)
    )
    count += _table_elements(artifact)
    read = count + sum(
        modules[name].in_features * modules[name].out_features
        for name, delta in artifact.delta.items()
        if delta.input_scale is not None or block_size(delta)
    )
    later = []
    if any(delta.magnitude is not None for delta in artifact.delta.values()):
        later.append("DoRA's gains, from the base's weights")
    if artifact.vocabulary is not None:
        later.append("which rows of embeddings and head differ from the base's")
    return {
        "estimate": True,
        "adapter_memory_bytes": {dtype: count * each for dtype, each in _ITEM_BYTES.items()},
        "bytes_per_token": {dtype: read * each for dtype, each in _ITEM_BYTES.items()},
        "share_of_base": round(read / max(parameters, 1), 6),
        "computed_at_load": later,
    }


def _table_elements(artifact: Artifact) -> int:
    """At most what the adapter's embeddings and head take: whole tables shrink to the rows that differ."""
    if artifact.vocabulary is None:
        return 0
    tables = (artifact.vocabulary.embedding, artifact.vocabulary.head)
    parts = [part for t in tables if t is not None for part in (t.table, t.rows, t.a, t.b)]
    parts.append(artifact.vocabulary.classes)
    return sum(part.numel() for part in parts if part is not None)
