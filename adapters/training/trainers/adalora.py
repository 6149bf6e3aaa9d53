"""AdaLoRA moves ranks between layers while it trains (https://arxiv.org/abs/2303.10512)."""

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

_BEFORE, _AFTER = 0.1, 0.25  # shares of the steps before ranks are taken away, and after the last was


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the adapter how many steps there are, and lets it choose its ranks after each of them."""

    def __init__(self, model: Any) -> None:
        self._adapter = model.base_model

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        config = self._adapter.peft_config["default"]
        config.total_step = state.max_steps
        if config.tinit == config.tfinal == 0:
            config.tinit = int(_BEFORE * state.max_steps)
            config.tfinal = max(1, int(_AFTER * state.max_steps))
        self._adapter.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._adapter.update_and_allocate(state.global_step)
