"""The weights of a base model on disk, one tensor at a time: safetensors, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from adapters.errors import BaseModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors in a model directory by name, read when they are asked for and not kept."""

    def __init__(self, directory: Path) -> None:
        """Find out which file holds which tensor.

        Raises:
            BaseModelError: there are no safetensors, or they can't be read.
        """
        self._directory = directory
        self._file: dict[str, str] = {}
        for path in _files(directory):
            try:
                with safe_open(path, framework="pt") as file:
                    self._file.update(dict.fromkeys(file.keys(), path.name))
            except (OSError, SafetensorError) as error:
                raise BaseModelError(f"{path} can't be read: {error}") from None

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._directory / self._file[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def file_of(self, name: str) -> str:
        """The file that holds the tensor."""
        return self._file[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        with safe_open(self._directory / self._file[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())


def _files(directory: Path) -> list[Path]:
    """The files that transformers would load: those of the index, else the one file."""
    index = directory / INDEX
    if not (directory / WEIGHTS).is_file() and index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            names = sorted(set(weight_map.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BaseModelError(f"{index} can't be read: {error}") from None
        if any(Path(str(name)).name != name for name in names):
            raise BaseModelError(f"{index} names files outside its directory")
        return [directory / name for name in names]
    if not (directory / WEIGHTS).is_file():
        raise BaseModelError(f"{directory} holds neither {WEIGHTS} nor {INDEX}")
    return [directory / WEIGHTS]
