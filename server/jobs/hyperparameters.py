"""OpenAI's hyperparameters: what "auto" stands for, and what they are to the trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from manylora.adapters.training.methods import LORA, rate_of

AUTO: Final = "auto"
RATE: Final = rate_of(LORA)  # what learning_rate_multiplier multiplies
BETA: Final = 0.1
_STEPS, _MOST_EPOCHS = 100, 10  # of few rows so many passes are made that it comes to so many steps
_BATCH, _SMALL_BATCH, _FEW_ROWS = 8, 4, 64


def resolved(asked: Mapping[str, Any], rows: int, *, dpo: bool) -> dict[str, Any]:
    """What was asked for, with numbers in place of "auto".

    batch_size: 8, of fewer than 64 rows 4. n_epochs: 2, of few rows up to 10, so that there are 100 steps.
    learning_rate_multiplier: 1, which is a rate of 0.0002. beta: 0.1.
    """
    batch = _number(asked, "batch_size", _SMALL_BATCH if rows < _FEW_ROWS else _BATCH)
    steps = max(1, math.ceil(rows / batch))
    epochs = min(_MOST_EPOCHS, max(2, math.ceil(_STEPS / steps)))
    found = {
        "n_epochs": _number(asked, "n_epochs", epochs),
        "batch_size": batch,
        "learning_rate_multiplier": _number(asked, "learning_rate_multiplier", 1.0),
    }
    return {**found, "beta": _number(asked, "beta", BETA)} if dpo else found


def _number(asked: Mapping[str, Any], name: str, auto: float) -> Any:
    value = asked.get(name, AUTO)
    return auto if value == AUTO else value
