"""Figures as a picture: throughput, time to first token and time between tokens, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manylora.server.cli.loadgen.figures import Figures


@dataclass(frozen=True)
class _Panel:
    """One of the pictures that stand side by side: a figure of every row."""

    title: str
    value: Callable[[Figures], float]
    worst: Callable[[Figures], float] | None = None  # where a whisker reaches


_PANELS = (
    _Panel("output tokens / s", lambda f: f.output_tokens_per_second),
    _Panel("first token, ms (p50, p99)", lambda f: 1000 * f.ttft_p50, lambda f: 1000 * f.ttft_p99),
    _Panel(
        "between tokens, ms (p50, p99)",
        lambda f: 1000 * f.inter_token_p50,
        lambda f: 1000 * f.inter_token_p99,
    ),
)


def draw_figures(rows: Sequence[Figures], path: Path) -> None:
    """Draw figures as bars grouped by workload, one colour a system.

    Raises:
        OSError: the file can't be written.
        ValueError: its ending names no picture format.
    """
    workloads = list(dict.fromkeys(row.workload for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    figure = Figure(figsize=(4.2 * len(_PANELS), 1.4 + 0.28 * len(workloads) * (len(systems) + 1)))
    for number, panel in enumerate(_PANELS):
        axes = figure.add_subplot(1, len(_PANELS), number + 1)
        for index, system in enumerate(systems):
            own = [row for row in rows if row.system == system]
            shift = 0.8 * ((index + 0.5) / len(systems) - 0.5)
            places = [workloads.index(row.workload) + shift for row in own]
            _bars(axes, panel, own, places, thickness=0.7 / len(systems))
        labels = workloads if number == 0 else [""] * len(workloads)
        axes.set_yticks(range(len(workloads)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(systems), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.28 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=120)


def _bars(
    axes: Axes, panel: _Panel, rows: Sequence[Figures], places: Sequence[float], *, thickness: float
) -> None:
    values = [panel.value(row) for row in rows]
    axes.barh(places, values, height=thickness, label=rows[0].system)
    if panel.worst is not None:
        beyond = [max(0.0, panel.worst(row) - value) for row, value in zip(rows, values, strict=True)]
        reach = [[0.0] * len(values), beyond]
        axes.errorbar(values, places, xerr=reach, fmt="none", ecolor="0.35", capsize=2, lw=0.8)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.0f}", (value, place), (2, 0), textcoords="offset points", va="center", fontsize=7
        )
