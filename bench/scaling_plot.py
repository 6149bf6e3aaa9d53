"""The law of a step as a picture: measured points, the fitted law and the roofline, a panel a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter

from bench.steps import Shape

_KEYS = ("batch", "context", "rank", "distinct", "rows")
_PANELS = (
    ("batch size", "batch", ("batch", "batch, one adapter", "batch, all distinct")),
    ("context, tokens (batch 16)", "context", ("context",)),
    ("rank (batch 16, all distinct)", "rank", ("rank",)),
    ("distinct adapters (batch 32)", "distinct", ("distinct",)),
    ("prompt, tokens", "rows", ("prompt", "prompt, an adapter")),
)
_LINES = (("the fitted law", "-"), ("roofline", ":"))
_NAMES = {"batch": "base", "batch, one adapter": "one adapter", "batch, all distinct": "all distinct"} | {
    "prompt": "base",
    "prompt, an adapter": "an adapter",
}


def draw(points: Sequence[Mapping[str, Any]], sweeps: Mapping[str, Sequence[Shape]], path: Path) -> None:
    """Milliseconds a step over what is varied, both logarithmic in the first panel."""
    found = {tuple(point[key] for key in _KEYS): point for point in points}
    figure = Figure(figsize=(4 * len(_PANELS), 3.4))
    for number, (title, key, names) in enumerate(_PANELS):
        axes = figure.add_subplot(1, len(_PANELS), number + 1)
        for colour, name in enumerate(names):
            own = [found[tuple(asdict(shape)[key] for key in _KEYS)] for shape in sweeps[name]]
            _curve(axes, own, key, f"C{colour}", _NAMES.get(name, "measured"))
        axes.set_xlabel(title, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        if key in ("batch", "rows"):
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        if not number:
            axes.set_ylabel("ms a step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        handles, _ = axes.get_legend_handles_labels()
        lines = [Line2D([], [], color="0.4", linestyle=style, label=label) for label, style in _LINES]
        axes.legend(handles=[*handles, *lines], fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _curve(axes: Axes, points: Sequence[Mapping[str, Any]], key: str, colour: str, name: str) -> None:
    x = [point[key] for point in points]
    for field, style in (("seconds", "o"), ("fitted", "-"), ("roofline", ":")):
        y = [1000 * point[field] for point in points]
        label = name if field == "seconds" else None
        axes.plot(x, y, style, color=colour, markersize=4, linewidth=1.2, label=label)
