"""What the numbers of a comparison mean for somebody who has to decide: the one place with thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a target differs from the baseline, from least to most."""

    EQUAL = "equal up to rounding"
    SMALL = "small differences"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A target has ``level`` if neither its mean nor its largest KL divergence exceeds these, in nats."""

    level: Level
    mean_kl: float
    max_kl: float
    meaning: str


THRESHOLDS = (
    Threshold(
        Level.EQUAL,
        1e-3,
        2e-2,
        "the same model computed in another order or rounded once to 16 bits: no token's probability "
        "moves by more than 0.1, on average by less than 0.03",
    ),
    Threshold(
        Level.SMALL,
        5e-2,
        1.0,
        "the same model with some loss, as from good quantization: mostly the same tokens, "
        "other choices where two were close",
    ),
)
BEYOND = "another model: whatever one of them was tested for says little about the other"


def level_of(mean_kl: float, max_kl: float) -> Level:
    """The level of a target with these divergences from the baseline."""
    for threshold in THRESHOLDS:
        if mean_kl <= threshold.mean_kl and max_kl <= threshold.max_kl:
            return threshold.level
    return Level.DIFFERENT


def verdict(baseline: str, targets: Sequence[tuple[str, Level]]) -> dict[str, Any]:
    """The verdict on a whole comparison, in JSON: the worst level, a sentence, and the thresholds."""
    order = list(Level)
    worst = max((level for _, level in targets), key=order.index)
    by_level = [(level, [name for name, own in targets if own is level]) for level in order]
    sentences = [f"{_list(names)}: {level.value}." for level, names in by_level if names]
    return {
        "level": worst.value,
        "sentence": f"Compared with {baseline}, teacher-forced over the reference. " + " ".join(sentences),
        "thresholds": [
            *(
                {"level": t.level.value, "mean_kl": t.mean_kl, "max_kl": t.max_kl, "meaning": t.meaning}
                for t in THRESHOLDS
            ),
            {"level": Level.DIFFERENT.value, "mean_kl": None, "max_kl": None, "meaning": BEYOND},
        ],
    }


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
