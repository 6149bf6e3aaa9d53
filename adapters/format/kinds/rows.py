"""Rows of the tables of options that kinds have in common."""

from __future__ import annotations

from manylora.adapters.format.config.support import (
    COMMON,
    MODULES_TO_SAVE,
    TARGETS,
    Option,
    Treatment,
)

EVERY_KIND: tuple[Option, ...] = (*COMMON, *TARGETS, MODULES_TO_SAVE)
RANK = Option("r", Treatment.SERVED, "1 up to the server's --max-lora-rank")
RANK_PATTERN = Option("rank_pattern", Treatment.SERVED, "per module, with PEFT's matching")
ALPHA = Option("alpha", Treatment.SERVED, "any positive number; the scaling is alpha / r")
ALPHA_PATTERN = Option("alpha_pattern", Treatment.SERVED, "as rank_pattern")
SAME_ON_CONV1D = Option(
    "fan_in_fan_out", Treatment.NO_EFFECT, "A is [r, in] and B is [out, r] on nn.Linear and Conv1D alike"
)
SAVE_PROJECTION = Option(
    "save_projection", Treatment.SERVED, "without saved projections they are drawn anew, as PEFT does"
)


def no_effect(key: str, why: str) -> Option:
    """The row of an option that is accepted and says nothing about what an adapter computes."""
    return Option(key, Treatment.NO_EFFECT, why)


def training_only(*keys: str) -> tuple[Option, ...]:
    """Rows of options that say nothing about what a trained adapter computes."""
    return tuple(Option(key, Treatment.NO_EFFECT, "training only") for key in keys)
