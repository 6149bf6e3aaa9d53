"""Pictures of a run's losses, learning rate and speed, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any


def curves_png(metrics: Sequence[dict[str, Any]]) -> bytes:
    """Loss and eval loss, learning rate, gradient norm and speed over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (slow, and only for this)
    from matplotlib.figure import Figure  # noqa: PLC0415

    panels = (
        ("loss", (("loss", "train"), ("eval_loss", "held out"))),
        ("learning rate", (("learning_rate", ""),)),
        ("gradient norm", (("grad_norm", ""),)),
        ("tokens a second", (("tokens_per_second", ""),)),
    )
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for key, label in curves:
            steps, values = series(metrics, key)
            if steps:
                axes.plot(steps, values, label=label or None, marker="." if len(steps) < 30 else None)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(curves) > 1 and any(series(metrics, key)[0] for key, _ in curves):
            axes.legend()
    canvas, out = FigureCanvasAgg(figure), BytesIO()
    canvas.print_png(out)
    return out.getvalue()


def compared_png(runs: Mapping[str, Sequence[dict[str, Any]]]) -> bytes:
    """Training and held-out loss of several runs in one picture; ``runs``: name -> lines of metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (slow, and only for this)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2).flat, ("loss", "eval_loss"), ("training loss", "held-out loss"), strict=True
    ):
        for name, metrics in runs.items():
            axes.plot(*series(metrics, key), label=name, marker=".")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    canvas, out = FigureCanvasAgg(figure), BytesIO()
    canvas.print_png(out)
    return out.getvalue()


def series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric."""
    found = [(line["step"], line[key]) for line in metrics if isinstance(line.get(key), int | float)]
    return [step for step, _ in found], [float(value) for _, value in found]
