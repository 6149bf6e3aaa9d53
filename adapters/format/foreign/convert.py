"""Whatever an adapter is written as, as PEFT's two files: found out once, when it comes in.

Nothing here says whether the base can serve it: what comes out is checked like any other artifact.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from manylora.adapters.disk import disk_fault
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import MAX_ENTRIES, Limits, header_bound
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME, FileFault, read_config
from manylora.adapters.format.foreign.canonical import config_of, tensors_of, write_files
from manylora.adapters.format.foreign.change import Change, Conversion
from manylora.adapters.format.foreign.file_names import GGUF, foreign_weights
from manylora.adapters.format.foreign.gguf.adapter import read_gguf_adapter
from manylora.adapters.format.foreign.mlx import is_mlx, read_mlx
from manylora.adapters.format.foreign.names import Rule
from manylora.adapters.format.foreign.spelling.named import is_lora
from manylora.adapters.format.foreign.spelling.spelled import Canonical, is_respelled, respell
from manylora.adapters.format.weights.tensors import TensorFile, read_header, read_tensors


@dataclass(frozen=True)
class Converted:
    """An adapter of another tool in PEFT's form, in memory."""

    conversion: Conversion
    canonical: Canonical

    def write(self, into: Path) -> None:
        """Write PEFT's two files into a directory, over what is there.

        Raises:
            StoreError: the disk refused.
        """
        try:
            write_files(into, self.canonical.config, self.canonical.tensors)
        except OSError as error:
            raise disk_fault(f"a converted adapter can't be written to {into}", error) from None


def convert(directory: Path, base: BaseModel, limits: Limits) -> Converted | None:
    """The adapter in ``directory`` in PEFT's form, where it is in another one.

    None where it is PEFT's already, or none that is known: reading it says why.

    Raises:
        ArtifactError: it can't be converted, with every reason.
    """
    names = _listed(directory)
    weights = WEIGHTS_NAME if WEIGHTS_NAME in names else _only(foreign_weights(names))
    if weights is None:
        return None
    try:
        config = read_config(directory / CONFIG_NAME) if CONFIG_NAME in names else None
    except FileFault:
        return None
    faults = Faults()
    found = _read(directory / weights, config, base, limits, faults)
    faults.raise_any()
    if found is None:
        return None
    form, canonical = found
    return Converted(Conversion(form, weights, canonical.rules), canonical)


def _listed(directory: Path) -> frozenset[str]:
    try:
        with os.scandir(directory) as entries:
            return frozenset(entry.name for entry in islice(entries, MAX_ENTRIES))
    except (OSError, ValueError):
        return frozenset()  # what reads it says so


def _only(names: Collection[str]) -> str | None:
    """The one file that may hold the weights.

    Raises:
        ArtifactError: there are several.
    """
    if len(names) > 1:
        raise ArtifactError(
            [f"there are several files that may be the adapter: {some(sorted(names), len(names))}"]
        )
    return next(iter(names), None)


def _read(
    path: Path, config: Mapping[str, Any] | None, base: BaseModel, limits: Limits, faults: Faults
) -> tuple[str, Canonical] | None:
    if path.name.endswith(GGUF):
        change = read_gguf_adapter(path, base, limits.max_bytes, faults)
        return None if change is None else ("GGUF", _canonical(*change, base))
    bound = 2 * header_bound(base)
    if config is not None and is_mlx(config):
        file = _tensors(path, bound, limits, faults)
        mlx = None if file is None else read_mlx(config, file, base, faults)
        return None if mlx is None else ("MLX", _canonical(*mlx, base))
    if path.name != WEIGHTS_NAME:
        file = _tensors(path, bound, limits, faults)
        return None if file is None or len(faults) else _named_otherwise(config, file, base, faults)
    header = read_header(path, bound)
    if header is None or not is_respelled(config, header, base):
        return None
    # Places of entries are integers; which may be some is looked at when what comes out is read.
    places = () if is_lora(config) else header.infos
    file = _tensors(path, bound, limits, faults, places)
    spelled = None if file is None or len(faults) else respell(config, file, base, faults)
    return None if spelled is None else (_form(spelled.rules), spelled)


def _named_otherwise(
    config: Mapping[str, Any] | None, file: TensorFile, base: BaseModel, faults: Faults
) -> tuple[str, Canonical] | None:
    """What is in a safetensors file that is not called as PEFT calls it."""
    spelled = respell(config, file, base, faults)
    if spelled is not None:
        return _form(spelled.rules), spelled
    if len(faults):
        return None
    if config is not None:
        return "PEFT", Canonical(config, {name: file.tensor(name) for name in file.infos}, frozenset())
    faults.add(f"the tensors {some(file.infos, len(file.infos))} are those of no adapter that is known here")
    return None


def _tensors(
    path: Path, bound: int, limits: Limits, faults: Faults, indices: Collection[str] = ()
) -> TensorFile | None:
    file = read_tensors(
        path, hashlib.sha256(), faults, max_header=bound, max_bytes=limits.max_bytes, indices=indices
    )
    return None if file is None or not file.complete else file


def _canonical(change: Change, rules: frozenset[Rule], base: BaseModel) -> Canonical:
    return Canonical(config_of(change, base), tensors_of(change), rules)


def _form(rules: Collection[Rule]) -> str:
    """Who writes such names, as far as they tell."""
    if Rule.MEGATRON in rules:
        return "Megatron"
    if Rule.DIFFUSERS in rules:
        return "diffusers"
    return "kohya" if Rule.DOWN_UP in rules else "PEFT"
