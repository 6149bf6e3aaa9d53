"""The study as a picture: hit rate and first token by size, and replicas needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PANELS = (
    ("hit_rate", "requests that find their adapter", "linear"),
    ("first_token_p99", "first token, 99th percentile, s", "log"),
)


def draw(sizes: Sequence[Mapping[str, Any]], needed: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of a study into ``path``, PNG or SVG."""
    rcParams["svg.hashsalt"] = "cluster"  # the same picture gives the same file
    figure = Figure(figsize=(11, 3.4))
    for number, (key, title, scale) in enumerate(_PANELS, 1):
        axes = figure.add_subplot(1, 3, number)
        for policy in dict.fromkeys(row["policy"] for row in sizes):
            own = [row for row in sizes if row["policy"] == policy]
            axes.plot(
                [row["replicas"] for row in own], [row[key] for row in own], "o-", label=policy, markersize=4
            )
        axes.set_xscale("log")
        axes.set_yscale(scale)
        axes.set_xlabel("replicas", fontsize=9)
        _finish(axes, title)
        if number == 1:
            axes.set_ylim(0, 1)
            axes.legend(fontsize=7, frameon=False)
    if needed:
        axes = figure.add_subplot(1, 3, 3)
        names = [row["policy"] for row in needed]
        bars = axes.barh(
            names, [row["replicas"] for row in needed], color=[f"C{i}" for i in range(len(names))]
        )
        axes.bar_label(bars, fontsize=8)
        axes.invert_yaxis()
        first = needed[0]
        _finish(axes, f"replicas for {first['rate']:g} requests/s, p99 ≤ {first['most_wait']:g} s")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
