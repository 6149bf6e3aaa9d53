"""A comparison on screens of any width, with texts that try to be more than text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from manylora.server.cli.compare.numbers import METRICS, metric
from manylora.server.cli.compare.report import html_report
from manylora.server.cli.compare.terminal import comparison, show_comparison
from manylora.server.comparison.verdict import Level
from tests.support.running_server import Running
from tests.support.served_adapters import compare

TARGETS = ("tiny", "alpha", "alpha*0.5+beta*-0.25", "beta", "alpha*0.25", "beta*2", "alpha+beta", "tiny")


@pytest.fixture
def result(server: Running) -> dict[str, Any]:
    return compare(server, *TARGETS, max_tokens=12)


def lines(result: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(comparison(result, ["Hello"]))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [70, 80, 100, 160])
def test_no_number_and_no_verdict_is_cut(result: dict[str, Any], width: int) -> None:
    found = lines(result, width)
    assert max(map(len, found)) <= width
    numbers = "\n".join(found[next(i for i, line in enumerate(found) if "numbers" in line) :])
    assert "…" not in numbers
    for heading, key in METRICS:
        assert heading in numbers
        assert metric(result["summary"][1], key) in numbers.split()
    judged = numbers.partition("Compared with")[0]
    for level in Level:
        assert judged.count(level) == sum(e["level"] == level for e in result["summary"] if e["target"])


@pytest.mark.parametrize(("width", "tables"), [(70, 4), (80, 3), (120, 2), (220, 1)])
def test_columns_stay_wide_enough_to_read(result: dict[str, Any], width: int, tables: int) -> None:
    tops = [line for line in lines(result, width) if line.startswith("┏")]
    assert len(tops) == tables
    assert sum(line.count("┳") + 1 for line in tops) == len(TARGETS)
    assert min(len(column) for line in tops for column in line.strip("┏┓").split("┳")) >= 20


def test_a_pipe_is_as_wide_as_columns_says(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, width in (("90", 90), (None, 160)):
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", columns)
        show_comparison(result, ["Hello"])
        assert max(map(len, capsys.readouterr().out.splitlines())) == width


def test_text_that_would_move_the_cursor_or_turn_around(server: Running) -> None:
    result = compare(server, "tiny", "alpha", max_tokens=5)
    for answer in result["cases"][0]["answers"]:
        answer["text"] = "[bold]not bold[/bold] [/oops]\x1b[2J\x9b1m \u202eabc"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison(result, ["[red]a prompt[/]"]))
    text = console.export_text()
    assert "[bold]not bold[/bold] [/oops]" in text
    assert "[red]a prompt[/]" in text
    assert "\x1b[2J" not in console.file.getvalue()  # type: ignore[attr-defined]
    for character in ("\x9b", "\u202e"):
        assert character not in text
        assert character not in html_report(result, ["Hello"], "here")
