"""A comparison on the terminal: answers side by side, the numbers, the verdict."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from manylora.server.cli.compare.numbers import METRICS, first_divergent, metric, nats, rate, seconds
from manylora.server.cli.compare.word_differences import differing
from manylora.server.cli.plain_text import plain

Result = Mapping[str, Any]

_LEVEL_STYLE = {"equal up to rounding": "green", "small differences": "yellow", "different": "red"}
_HEAT = ("", "on color(22)", "on color(58)", "on color(94)", "on color(130)", "on color(160)")
_WIDE = 160  # characters where no terminal limits them
_COLUMN = 25  # of an answer that can still be read
_FIRST = ("mean_kl", "max_kl", "top1_agreement")  # beside the verdict, where not everything is


def show_comparison(result: Result, prompts: Sequence[str]) -> None:
    """Print a comparison as wide as the terminal (or COLUMNS). ``prompts``: what was asked, for people."""
    limited = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if limited else _WIDE, highlight=False)
    console.print(comparison(result, prompts))


def comparison(result: Result, prompts: Sequence[str]) -> RenderableType:
    """A whole comparison for a rich console, ending with the verdict."""
    parts: list[RenderableType] = []
    for index, (case, prompt) in enumerate(zip(result["cases"], prompts, strict=True)):
        parts += [
            Rule(Text(f"prompt {index + 1} of {len(prompts)}")),
            Text(plain(prompt), style="italic"),
            Text(),
        ]
        if case["answers"]:
            parts += [_Answers(result, case), Text()]
        parts += [*_strips(result, case), Text()]
    return Group(
        *parts,
        Rule(Text("all prompts" if len(prompts) > 1 else "numbers")),
        _Numbers(result),
        _verdict(result),
    )


def _name(result: Result, target: int) -> str:
    name: str = result["targets"][target]["target"]
    return plain(name)


@dataclass(frozen=True)
class _Answers:
    """Answers side by side, in as many tables as the width asks for; differences are coloured."""

    result: Result
    case: Result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        answers = self.case["answers"]
        fitting = max(1, (options.max_width - 1) // (_COLUMN + 1))
        tables = math.ceil(len(answers) / fitting)
        columns = math.ceil(len(answers) / tables)
        for start in range(0, len(answers), columns):
            yield self._table(answers[start : start + columns])

    def _table(self, answers: Sequence[Result]) -> Table:
        baseline = self.case["answers"][self.result["baseline"]]["text"]
        table = Table(expand=True, show_lines=True)
        for answer in answers:
            model = plain(self.result["targets"][answer["target"]]["model"])
            table.add_column(Text(model, style="bold"), ratio=1, overflow="fold")
        table.add_row(*(_coloured(baseline, answer["text"]) for answer in answers))
        table.add_row(*(Text(_pace(answer), style="dim") for answer in answers))
        return table


def _coloured(baseline: str, text: str) -> Text:
    found = Text()
    for piece, differs in differing(plain(baseline), plain(text)):
        found.append(piece, style="bold yellow" if differs else "")
    return found


def _pace(answer: Result) -> str:
    first, total = seconds(answer["ttft_seconds"]), seconds(answer["total_seconds"])
    return (
        f"{answer['completion_tokens']} tokens, {answer['finish_reason']}; first after {first}, "
        f"all after {total}, {rate(answer['tokens_per_second'])} tokens/s"
    )


def _strips(result: Result, case: Result) -> list[RenderableType]:
    """The reference once for each target, every token coloured by the divergence there."""
    source = case["reference"]["target"]
    said = "the given text" if source is None else f"the answer of {_name(result, source)}"
    parts: list[RenderableType] = [Text(f"KL divergence along {said}; underlined: another top token", "dim")]
    for pair in case["pairs"]:
        strip = Text(f"{_name(result, pair['target'])}: ", style="bold")
        for token, kl, agrees in zip(
            case["reference"]["tokens"], pair["kl"], pair["top1_agrees"], strict=True
        ):
            style = _HEAT[_step(kl)] + ("" if agrees else " underline")
            strip.append(plain(token["text"]).replace("\n", "⏎\n"), style=style.strip())
        parts += [strip, Text(f"  {plain(first_divergent(pair))}", style="dim")]
    return parts


def _step(kl: float) -> int:
    """0 for nothing up to 5 for a nat and more, one for each power of ten from 1e-4 on."""
    return 0 if kl < 1e-4 else min(5, int(math.log10(kl) + 5))


@dataclass(frozen=True)
class _Numbers:
    """The numbers of every target in one row with its verdict; where that is too wide, in two tables."""

    result: Result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self._table(METRICS, verdict=True)
        if console.measure(whole, options=options.update(max_width=10_000)).maximum <= options.max_width:
            yield Padding(whole, (0, 0, 1, 0), expand=False)
            return
        first = [metric for metric in METRICS if metric[1] in _FIRST]
        others = [metric for metric in METRICS if metric[1] not in _FIRST]
        yield Padding(self._table(first, verdict=True), (0, 0, 1, 0), expand=False)
        yield Padding(self._table(others, verdict=False), (0, 0, 1, 0), expand=False)

    def _table(self, metrics: Sequence[tuple[str, str]], *, verdict: bool) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", overflow="fold")
        for heading, _ in metrics:
            table.add_column(heading, justify="right", no_wrap=True)
        if verdict:
            table.add_column("verdict", no_wrap=True)
        for entry in self.result["summary"]:
            is_baseline = entry["target"] == self.result["baseline"]
            cells = ["-" if is_baseline and key != "perplexity" else metric(entry, key) for _, key in metrics]
            level = "baseline" if is_baseline else entry["level"]
            judged = [Text(level, _LEVEL_STYLE.get(level, "dim"))] if verdict else []
            table.add_row(Text(_name(self.result, entry["target"])), *cells, *judged)
        return table


def _verdict(result: Result) -> RenderableType:
    verdict = result["verdict"]
    lines: list[RenderableType] = [Text(plain(verdict["sentence"]), style=_LEVEL_STYLE[verdict["level"]])]
    for threshold in verdict["thresholds"]:
        limits = (
            "beyond that"
            if threshold["mean_kl"] is None
            else f"mean KL up to {nats(threshold['mean_kl'])}, anywhere up to {nats(threshold['max_kl'])}"
        )
        lines.append(Text(f"  {threshold['level']} ({limits}): {threshold['meaning']}", style="dim"))
    return Group(*lines)
