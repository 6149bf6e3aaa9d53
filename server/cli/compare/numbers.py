"""Numbers of a comparison as people read them."""

from __future__ import annotations

from typing import Any


def nats(value: float) -> str:
    """A divergence: ``0``, ``3.1e-09`` or ``0.042``."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share in per cent, as ``99.9%``; 100% only where it is exactly that."""
    text = f"{100 * value:.1f}%"
    return "99.9%" if text == "100.0%" and value < 1 else text.replace(".0%", "%")


def seconds(value: float) -> str:
    """A time: ``34 ms`` or ``1.20 s``."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def rate(value: float | None) -> str:
    """Tokens a second, as ``12.3``; ``-`` where that was not measured."""
    return "-" if value is None else f"{value:.1f}"


def first_divergent(pair: dict[str, Any]) -> str:
    """A sentence on where the likeliest tokens of a target and the baseline differ first."""
    found = pair["first_divergent"]
    if found is None:
        return "the same top token everywhere"
    return f"first other top token at {found['position']}: {found['target']!r}, not {found['baseline']!r}"


METRICS: tuple[tuple[str, str], ...] = (
    ("mean KL", "mean_kl"),
    ("max KL", "max_kl"),
    ("mean JS", "mean_js"),
    ("max JS", "max_js"),
    ("same top token", "top1_agreement"),
    ("largest logit difference", "largest_logit_difference"),
    ("perplexity", "perplexity"),
)


def metric(entry: dict[str, Any], key: str) -> str:
    """One number of a target's summary, by its key in :data:`METRICS`."""
    value = entry[key]
    if key == "top1_agreement":
        return percent(value)
    return f"{value:.4g}" if key == "perplexity" else nats(value)
