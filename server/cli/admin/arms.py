"""The arms of an alias as a table on the terminal: a column an arm, then how each differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from manylora.server.cli.admin.lines import share
from manylora.server.cli.admin.tables import ago

Answer = Mapping[str, Any]
Unit = Callable[[float], tuple[float, str]]  # how many of which unit something of this size is told in


def arms_table(alias: Answer) -> RenderableType:
    """A table of what the answers of each arm of an alias have come to; ``alias`` is the server's answer."""
    differences = alias["differences"]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for arm in alias["arms"]:
        table.add_column(Text(arm["target"]))
    for apart in differences:
        table.add_column("difference" if len(differences) == 1 else Text(f"{apart['target']} less the first"))
    for heading, *cells in _rows(alias["arms"], differences):
        table.add_row(Text(heading, style="dim"), *map(Text, cells))
    note = f"In brackets: {alias['confidence']:.0%} confidence intervals. '-': too few answers to tell."
    return Group(table, Text(), Text(note, style="dim"))


def _rows(arms: list[Answer], differences: list[Answer]) -> Iterator[list[str]]:
    yield ["share", *(share(arm["share"]) for arm in arms)]
    yield ["counted since", *(ago(arm["since"]) for arm in arms)]
    for name in ("requests", "answers"):
        yield [name, *(str(arm[name]) for arm in arms)]
    yield ["scores", *(str(arm["score"]["count"]) for arm in arms)]
    yield [
        "mean score",
        *(_cell(arm["score"], "mean", _plain) for arm in arms),
        *(_apart(apart["score"], _plain) for apart in differences),
    ]
    for reason in arms[0]["finish_reasons"]:
        yield [
            f"ended by {reason}",
            *(_cell(arm["finish_reasons"][reason], "rate", _percent) for arm in arms),
            *(_apart(apart["finish_reasons"][reason], _points) for apart in differences),
        ]
    for measure, (heading, unit) in _MEASURES.items():
        yield [
            f"{heading}, mean",
            *(_cell(arm[measure], "mean", unit) for arm in arms),
            *(_apart(apart[measure], unit) for apart in differences),
        ]
        yield [f"{heading}, p50, p95", *(_quantiles(arm[measure], unit) for arm in arms)]


def _cell(found: Answer, name: str, unit: Unit) -> str:
    return "-" if found[name] is None else _told(found[name], found["interval"], unit)


def _apart(found: Answer | None, unit: Unit) -> str:
    if found is None:
        return "-"
    sign = "+" if found["difference"] > 0 else ""
    return sign + _told(found["difference"], found["interval"], unit)


def _told(value: float, interval: list[float] | None, unit: Unit) -> str:
    """A value with its confidence interval: ``34 ms (22.9 to 45.1)``."""
    scale, name = unit(value)
    told = f"{scale * value:.3g}{name}"
    if interval is None:
        return told
    low, high = interval
    return f"{told} ({scale * low:.3g} to {scale * high:.3g})"


def _quantiles(found: Answer, unit: Unit) -> str:
    if found["p50"] is None:
        return "-"
    return ", ".join(_told(found[name], None, unit) for name in ("p50", "p95"))


def _plain(_: float) -> tuple[float, str]:
    return 1.0, ""


def _percent(_: float) -> tuple[float, str]:
    return 100.0, "%"


def _points(_: float) -> tuple[float, str]:
    return 100.0, " points"


def _time(value: float) -> tuple[float, str]:
    return (1.0, " s") if abs(value) >= 1 else (1000.0, " ms")


_MEASURES: Mapping[str, tuple[str, Unit]] = {
    "time_to_first_token_seconds": ("first token", _time),
    "inter_token_seconds": ("between tokens", _time),
    "request_seconds": ("whole answer", _time),
    "prompt_tokens": ("prompt tokens", _plain),
    "completion_tokens": ("answer tokens", _plain),
}
