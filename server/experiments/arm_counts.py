"""What the answers of an arm add up to: a flat mapping of numbers, so that tallies of any origin add.

Keys are ``requests``; one for each finish reason; and for each of :data:`MEASURES` and for ``score``
``:count``, ``:total`` and ``:squares``. Measures also have a histogram in ``:b<k>``, whose bucket k
holds the values in (2^((k-1)/8), 2^(k/8)], for quantiles that are right within 5%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping

from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.experiments.statistics import (
    Interval,
    Sums,
    mean_interval,
    rate_interval,
    score_interval,
)

Counts = Mapping[str, float]

MEASURES = (
    "time_to_first_token_seconds",
    "inter_token_seconds",
    "request_seconds",
    "prompt_tokens",
    "completion_tokens",
)
REASONS = tuple(reason.value for reason in FinishReason)

_PER_OCTAVE = 8
_LOWEST, _HIGHEST = -160, 200  # buckets, from 1 µs to 30 million
_COMPLETE = {FinishReason.STOP, FinishReason.LENGTH}


def add(into: MutableMapping[str, float], counts: Counts) -> None:
    """Add ``counts`` to ``into``."""
    for key, value in counts.items():
        into[key] = into.get(key, 0) + value


def answered(sequence: Sequence, reason: FinishReason, began: float, ended: float) -> dict[str, float]:
    """What one answer that has ended adds.

    Times are on the clock of :func:`time.monotonic`. What an answer would have come to is unknown if it
    was aborted or failed: then its length and duration do not count.
    """
    counts: dict[str, float] = {reason.value: 1}
    if sequence.index == 0:  # of the answers to one prompt
        _measure(counts, "prompt_tokens", sequence.num_prompt_tokens)
    if sequence.first_token is not None and sequence.last_token is not None:
        _measure(counts, "time_to_first_token_seconds", sequence.first_token - began)
        gaps = sequence.num_output_tokens - 1
        if gaps > 0:
            _measure(counts, "inter_token_seconds", (sequence.last_token - sequence.first_token) / gaps)
    if reason in _COMPLETE:
        _measure(counts, "request_seconds", ended - began)
        _measure(counts, "completion_tokens", sequence.num_output_tokens)
    return counts


def scored(score: float, *, sign: int = 1) -> dict[str, float]:
    """What a score adds; with ``sign`` -1, what taking it back does."""
    return {
        "score:count": sign,
        "score:total": sign * score,
        "score:squares": sign * score * score,
        "score:extremes": sign * (score in {0, 1}),
    }


def _measure(counts: dict[str, float], name: str, value: float) -> None:
    counts[f"{name}:count"] = 1
    counts[f"{name}:total"] = value
    counts[f"{name}:squares"] = value * value
    counts[f"{name}:b{_bucket(value)}"] = 1


def _bucket(value: float) -> int:
    if value <= 0:
        return _LOWEST
    return min(_HIGHEST, max(_LOWEST, math.ceil(_PER_OCTAVE * math.log2(value))))


class Tally:
    """Reads what has been added up."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    @property
    def requests(self) -> int:
        """Requests that came to this arm."""
        return int(self._counts.get("requests", 0))

    @property
    def answers(self) -> int:
        """Answers that have ended, however; a request for ``n`` has n of them."""
        return sum(map(self.ended, REASONS))

    def ended(self, reason: str) -> int:
        """Answers that ended with ``reason``."""
        return int(self._counts.get(reason, 0))

    def rate(self, reason: str) -> Interval | None:
        """The share of answers that ended with ``reason``; None if none has ended."""
        answers = self.answers
        return rate_interval(self.ended(reason) / answers, answers) if answers else None

    def sums(self, name: str) -> Sums:
        """Of a measure, or of ``score``."""
        return Sums(*(self._counts.get(f"{name}:{part}", 0) for part in ("count", "total", "squares")))

    def mean(self, measure: str) -> Interval | None:
        """The mean of a measure; None for fewer than two values."""
        return mean_interval(self.sums(measure))

    @property
    def score(self) -> Interval | None:
        """The mean score; None if there is none."""
        return score_interval(self.sums("score"), extremes=self._counts.get("score:extremes", 0))

    def quantile(self, measure: str, fraction: float) -> float | None:
        """The value that ``fraction`` of a measure's values do not exceed, within 5%; None without values."""
        prefix = f"{measure}:b"
        buckets = sorted(
            (int(key.removeprefix(prefix)), n) for key, n in self._counts.items() if key.startswith(prefix)
        )
        wanted = fraction * sum(n for _, n in buckets)
        seen = 0.0
        for bucket, n in buckets:
            seen += n
            if seen >= wanted:
                return float(2.0 ** ((bucket - 0.5) / _PER_OCTAVE))
        return None
