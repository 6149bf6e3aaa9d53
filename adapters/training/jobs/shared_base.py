"""One base in memory for all runs on it: each has a module tree of its own, over the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def not_shared(config: TrainConfig) -> list[str]:
    """The options by which a run changes the weights of its base, or brings others."""
    initial = config.init_adapter
    reasons = {
        "task": config.task not in WRITING,  # a head of its own
        "method": not config.is_lora,
        "init": config.converted,
        "modules_to_save": bool(config.modules_to_save),
        "init_adapter": initial is not None and not _is_plain(Path(initial)),
    }
    return [option for option, given in reasons.items() if given]


def can_share(config: TrainConfig) -> bool:
    """Whether a run leaves the weights of its base as they are, and has no head of its own on it."""
    return not not_shared(config)


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
        return deepcopy(model, {id(part): part for part in _weights(model)})

    def clear(self) -> None:
        """Forget the weights, once nothing is run on them any more."""
        self._models.clear()


def _weights(model: Any) -> Iterator[Any]:
    """What module trees over one model have in common; of quantized weights also what they are scaled by."""
    yield from model.parameters()
    for module in model.modules():
        if (scales := getattr(module, "quant_state", None)) is not None:  # 4 bits
            yield scales
        if hasattr(module, "init_8bit_state"):
            if module.weight.CB is not None:  # the first forward pass would move them into one tree
                module.init_8bit_state()
            yield from (part for part in (module.state.CB, module.state.SCB) if part is not None)


@dataclass(frozen=True)
class SharedLoader(BaseLoader):
    """Gives a run the base that is in memory."""

    shared: SharedBase

    def load(self) -> Any:
        key = (self.base.directory, self.dtype, self.device, self.config.quantization)
        tree = self.shared.tree(key, super().load)
        set_seed(self.config.seed)  # as after loading
        return tree
