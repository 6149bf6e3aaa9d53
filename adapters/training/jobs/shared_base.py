"""One base in memory for all runs on it: each has a module tree of its own, over the same weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import set_seed

from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.prepare import WRITING
from manylora.adapters.training.model.loading import BaseLoader
from manylora.adapters.training.session.session import Session


def can_share(config: TrainConfig) -> bool:
    """Whether a run leaves the weights of its base as they are, and has no head of its own on it.

    A quantized base is not shared: bitsandbytes changes it when it is first used. Nor is one under an adapter
    to go on from that brings weights of the base (embeddings, modules in full).
    """
    is_plain = config.is_lora and not config.converted and not config.modules_to_save
    return (
        is_plain
        and config.task in WRITING
        and config.quantization == "none"
        and (config.init_adapter is None or _is_plain(Path(config.init_adapter)))
    )


def _is_plain(directory: Path) -> bool:
    file = directory / WEIGHTS_NAME
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as tensors:
        return all(".lora_" in key for key in tensors.keys())  # noqa: SIM118 - it is no mapping


class SharedBase:
    """The weights of a base, as long as there are runs on it."""

    def __init__(self) -> None:
        self._models: dict[tuple[Any, ...], Any] = {}

    def loader(self, session: Session) -> BaseLoader:
        """What gives ``session`` its base from here. Its config is one that :func:`can_share`."""
        return SharedLoader(session.config, session.base, session.prepared.classes, self)

    @property
    def is_loaded(self) -> bool:
        return bool(self._models)

    def tree(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        """A module tree of its own over the weights that ``load`` gives the first time."""
        if key not in self._models:
            self._models[key] = load()
        model = self._models[key]
        return deepcopy(model, {id(weight): weight for weight in model.parameters()})

    def clear(self) -> None:
        """Forget the weights, once nothing is run on them any more."""
        self._models.clear()


@dataclass(frozen=True)
class SharedLoader(BaseLoader):
    """Gives a run the base that is in memory."""

    shared: SharedBase

    def load(self) -> Any:
        tree = self.shared.tree((self.base.directory, self.dtype, self.device), super().load)
        set_seed(self.config.seed)  # as after loading
        return tree
