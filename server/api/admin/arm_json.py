"""The arms of an alias as JSON: what each has come to, and how they differ, with 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manylora.adapters.registry.records import AliasRecord, ArmRecord
from manylora.server.experiments.arm_counts import MEASURES, REASONS, Tally
from manylora.server.experiments.statistics import CONFIDENCE, Interval, difference

MIN_ANSWERS = 10  # of both arms, before their difference is shown


def arms_json(record: AliasRecord, counted: Mapping[str, ArmRecord]) -> dict[str, Any]:
    """The arms of an alias with their counts and estimates, and how the others differ from the first."""
    shares: dict[str, float] = {}
    for target, share in record.arms:
        shares[target] = shares.get(target, 0.0) + share
    tallies = {target: Tally(counted[target].counts) for target in shares}
    total = sum(shares.values())
    baseline, *others = shares
    return {
        "confidence": CONFIDENCE,
        "arms": [
            {
                "target": target,
                "share": share / total,
                "since": counted[target].since,
                **_arm(tallies[target]),
            }
            for target, share in shares.items()
        ],
        "differences": [
            {"target": other, "baseline": baseline, **_differences(tallies[other], tallies[baseline])}
            for other in others
        ],
    }


def _arm(tally: Tally) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "answers": tally.answers,
        "finish_reasons": {
            reason: {"count": tally.ended(reason), **_estimate("rate", tally.rate(reason))}
            for reason in REASONS
        },
        "score": {"count": int(tally.sums("score").count), **_estimate("mean", tally.score)},
        **{measure: _measure(tally, measure) for measure in MEASURES},
    }


def _measure(tally: Tally, name: str) -> dict[str, Any]:
    sums = tally.sums(name)
    known = _estimate("mean", tally.mean(name))
    if sums.count == 1:
        known["mean"] = sums.mean
    quantiles = {f"p{100 * part:.0f}": tally.quantile(name, part) for part in (0.5, 0.95)}
    return {"count": int(sums.count), **known, **quantiles}


def _estimate(name: str, found: Interval | None) -> dict[str, Any]:
    if found is None:
        return {name: None, "interval": None, "method": None}
    return {name: found.estimate, "interval": [found.low, found.high], "method": found.method}


def _differences(one: Tally, other: Tally) -> dict[str, Any]:
    """``one`` less ``other`` in everything that has an estimate in both."""
    return {
        "score": _difference(_score_estimate(one), _score_estimate(other)),
        "finish_reasons": {
            reason: _difference(_rate_estimate(one, reason), _rate_estimate(other, reason))
            for reason in REASONS
        },
        **{name: _difference(_mean_estimate(one, name), _mean_estimate(other, name)) for name in MEASURES},
    }


_CountedEstimate = tuple[float, Interval | None]


def _score_estimate(tally: Tally) -> _CountedEstimate:
    return tally.sums("score").count, tally.score


def _rate_estimate(tally: Tally, reason: str) -> _CountedEstimate:
    return tally.answers, tally.rate(reason)


def _mean_estimate(tally: Tally, name: str) -> _CountedEstimate:
    return tally.sums(name).count, tally.mean(name)


def _difference(one: _CountedEstimate, other: _CountedEstimate) -> dict[str, Any] | None:
    """None while one of them has too few values for an interval to mean much."""
    (count, found), (other_count, expected) = one, other
    if found is None or expected is None or min(count, other_count) < MIN_ANSWERS:
        return None
    apart = difference(found, expected)
    return {"difference": apart.estimate, "interval": [apart.low, apart.high]}
