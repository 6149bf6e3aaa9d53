"""What a job measured, as OpenAI's result file has it, and at single steps."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

COLUMNS: Final = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
# Names of measures in metrics.jsonl; of preferences, how often the better answer is the likelier one.
_TRAIN_ACCURACY = ("token_accuracy", "rewards/accuracies")
_VALID_ACCURACY = ("eval_mean_token_accuracy", "eval_token_accuracy", "eval_rewards/accuracies")
_CSV = (  # what stands in each column: the first of these that was measured
    ("step",),
    ("train_loss",),
    ("train_mean_token_accuracy", "train_accuracy"),
    ("valid_loss",),
    ("valid_mean_token_accuracy", "valid_accuracy"),
)
# Of classes how often the likeliest is the right one, of embeddings how often the nearest candidate is.
_ACCURACIES = (("train_accuracy", "accuracy"), ("valid_accuracy", "eval_accuracy"))
_MARGINS = (("train_reward_margin", "rewards/margins"), ("valid_reward_margin", "eval_rewards/margins"))


def by_step(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The measures of each step, by their names in events and checkpoints."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] in ("train", "eval"):
            found.setdefault(line["step"], {"step": line["step"]}).update(measures(line))
    return [found[step] for step in sorted(found)]


def measures(line: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of a line of metrics.jsonl, by their names in events."""
    renamed = {
        "train_loss": _first(line, ("loss",)),
        "train_mean_token_accuracy": _first(line, _TRAIN_ACCURACY),
        "valid_loss": _first(line, ("eval_loss",)),
        "valid_mean_token_accuracy": _first(line, _VALID_ACCURACY),
        **{name: _first(line, (key,)) for name, key in (*_ACCURACIES, *_MARGINS)},
    }
    kept = {key: _first(line, (key,)) for key in ("grad_norm", "learning_rate", "tokens_per_second")}
    return {name: value for name, value in {**renamed, **kept}.items() if value is not None}


def csv_of(steps: Sequence[Mapping[str, Any]]) -> bytes:
    """OpenAI's result file; what was not measured at a step is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in steps:
        values = [_first(row, names) for names in _CSV]
        writer.writerow("" if value is None else value for value in values)
    return text.getvalue().encode()


def at(steps: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """What was measured last up to ``step``, by name."""
    found: dict[str, Any] = {}
    for row in steps:
        if row["step"] <= step:
            found |= row
    return {**found, "step": step}


def _first(line: Mapping[str, Any], names: Sequence[str]) -> float | None:
    values = (line.get(name) for name in names)
    return next((value for value in values if value is not None and math.isfinite(value)), None)
