"""The weights of a base model on disk, one tensor at a time: safetensors, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from manylora.adapters.base_models.directory import GGUF_LINK
from manylora.adapters.errors import BaseModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a file says about one of its tensors."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors in a model directory by name, read when they are asked for and not kept."""

    def __init__(self, directory: Path) -> None:
        """Find out which file holds which tensor.

        Raises:
            BaseModelError: there are no safetensors, or they can't be read.
        """
        self.infos: dict[str, StoredTensor] = {}
        for path in _files(directory):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  (not a mapping)
                        part = file.get_slice(name)
                        self.infos[name] = StoredTensor(path, tuple(part.get_shape()), part.get_dtype())
            except (OSError, SafetensorError) as error:
                raise BaseModelError(f"{path} can't be read: {error}") from None

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.infos[name].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def part(self, name: str, rows: range | None, columns: range | None) -> torch.Tensor:
        """Some rows, of them some columns, of a tensor; None: all. No more of the file is read."""
        with safe_open(self.infos[name].file, framework="pt") as file:
            whole = file.get_slice(name)
            own = slice(None) if rows is None else slice(rows.start, rows.stop)
            if columns is None:
                tensor: torch.Tensor = whole[own]
            else:
                tensor = whole[own, columns.start : columns.stop]
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.infos  # a mapping's own would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


def _files(directory: Path) -> list[Path]:
    """The files that transformers would load: the one file, else those of the index."""
    if (directory / GGUF_LINK).is_symlink():
        raise BaseModelError(
            f"{directory} was made for a GGUF file, which can be served; for anything else take the original"
        )
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not index.is_file():
        raise BaseModelError(f"{directory} holds neither {WEIGHTS} nor {INDEX}")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{index} can't be read: {error}") from None
    if any(Path(str(name)).name != name for name in names):
        raise BaseModelError(f"{index} names files outside its directory")
    return [directory / name for name in names]
