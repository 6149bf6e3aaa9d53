"""Rows of texts that belong together: a question and its answer, or two and how alike they are."""

from __future__ import annotations

import math
import re

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.parsing.record import Record
from manylora.adapters.training.data.rows import ContrastRow, Row

MAX_TEXTS = 64  # positives, and negatives, of a row: all of them go through the model with it
_NUMBERED = re.compile(r"negative_\d+")


def contrast(record: Record) -> Row | None:
    """``{"anchor": ..., "positive": ...}`` and perhaps ``negative``, ``negatives``, ``negative_1``, ..."""
    anchor, positives = record.text("anchor"), _texts(record, "positive")
    negatives = _negatives(record)
    if anchor is None or positives is None or negatives is None:
        return None
    if not positives:
        record.say(f"{record.name('positive')}: is empty: give the text that belongs to it")
        return None
    both = next((text for text in negatives if text in positives or text == anchor), None)
    if both is not None:
        record.say(f"{shown(both)} is a negative, and the positive or the {record.name('anchor')} as well")
        return None
    if anchor in positives:
        record.note("texts are their own positives: there is little to learn from them")
    return ContrastRow(record.origin, anchor, positives, negatives)


def scored(record: Record) -> Row | None:
    """``{"sentence1": ..., "sentence2": ..., "score": 0.8}``."""
    first, second, score = record.text("sentence1"), record.text("sentence2"), record.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        record.say(f"{record.name('score')}: must be a number, not {shown(score)}")
        return None
    if not -1 <= score <= 1:
        record.say(
            f"{record.name('score')}: must be the cosine to learn, between -1 and 1, not {score:g}: divide "
            f"scores by the highest there can be"
        )
        return None
    if first is None or second is None:
        return None
    return ContrastRow(record.origin, first, (second,), (), float(score))


def _negatives(record: Record) -> tuple[str, ...] | None:
    """All that the row has under the usual names; None where one is no text, which is said."""
    numbered = sorted(filter(_NUMBERED.fullmatch, map(str, record.value)))
    found: list[str] = []
    for name in ("negative", "negatives", *numbered):
        texts = _texts(record, name)
        if texts is None:
            return None
        found += texts
    return tuple(dict.fromkeys(found))


def _texts(record: Record, name: str) -> tuple[str, ...] | None:
    """A field that holds a text or several, or nothing; None where it holds something else, which is said."""
    value = record.get(name)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            record.say(
                f"{record.name(name)}: must be a text that is not empty, or several, not {shown(value)}"
            )
            return None
    if len(texts) > MAX_TEXTS:
        record.say(f"{record.name(name)}: has {len(texts)} texts; the limit is {MAX_TEXTS}")
        return None
    return tuple(dict.fromkeys(texts))
