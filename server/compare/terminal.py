"""A comparison on the terminal: answers side by side, the numbers, the verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from server.compare.numbers import METRICS, first_divergent, metric, nats, rate, seconds
from server.compare.words import differing

Result = Mapping[str, Any]

_LEVEL_STYLE = {"equal up to rounding": "green", "small differences": "yellow", "different": "red"}
_HEAT = ("", "on color(22)", "on color(58)", "on color(94)", "on color(130)", "on color(160)")
_WIDE = 160  # characters where no terminal limits them
_CONTROLS = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def show(result: Result, prompts: Sequence[str]) -> None:
    """Print to stdout. ``prompts``: what was asked, for people."""
    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    console.print(comparison(result, prompts))


def comparison(result: Result, prompts: Sequence[str]) -> RenderableType:
    """Everything, ending with the verdict."""
    parts: list[RenderableType] = []
    for index, (case, prompt) in enumerate(zip(result["cases"], prompts, strict=True)):
        parts += [
            Rule(Text(f"prompt {index + 1} of {len(prompts)}")),
            Text(_tame(prompt), style="italic"),
            Text(),
        ]
        if case["answers"]:
            parts += [_answers(result, case), Text()]
        parts += [*_strips(result, case), Text()]
    return Group(
        *parts,
        Rule(Text("all prompts" if len(prompts) > 1 else "numbers")),
        _numbers(result),
        _verdict(result),
    )


def _name(result: Result, target: int) -> str:
    name: str = result["targets"][target]["target"]
    return name


def _answers(result: Result, case: Result) -> RenderableType:
    """One column a target; what differs from the baseline's answer is coloured."""
    baseline = case["answers"][result["baseline"]]["text"]
    table = Table(expand=True, show_lines=True)
    for answer in case["answers"]:
        model = result["targets"][answer["target"]]["model"]
        table.add_column(Text(model, style="bold"), ratio=1, overflow="fold")
    table.add_row(*(_coloured(baseline, answer["text"]) for answer in case["answers"]))
    table.add_row(*(Text(_pace(answer), style="dim") for answer in case["answers"]))
    return table


def _coloured(baseline: str, text: str) -> Text:
    found = Text()
    for piece, differs in differing(_tame(baseline), _tame(text)):
        found.append(piece, style="bold yellow" if differs else "")
    return found


def _tame(text: str) -> str:
    """``text`` without control characters: an answer must not move the cursor, or more."""
    return text.translate(_CONTROLS)


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
            strip.append(_tame(token["text"]).replace("\n", "⏎\n"), style=style.strip())
        parts += [strip, Text(f"  {_tame(first_divergent(pair))}", style="dim")]
    return parts


def _step(kl: float) -> int:
    """0 for nothing up to 5 for a nat and more, one for each power of ten from 1e-4 on."""
    return 0 if kl < 1e-4 else min(5, int(math.log10(kl) + 5))


def _numbers(result: Result) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for heading, _ in METRICS:
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for entry in result["summary"]:
        is_baseline = entry["target"] == result["baseline"]
        level = "baseline" if is_baseline else entry["level"]
        cells = [metric(entry, key) for _, key in METRICS]
        if is_baseline:
            cells = ["-" if key != "perplexity" else metric(entry, key) for _, key in METRICS]
        table.add_row(
            Text(_name(result, entry["target"])), *cells, Text(level, _LEVEL_STYLE.get(level, "dim"))
        )
    return Padding(table, (0, 0, 1, 0))


def _verdict(result: Result) -> RenderableType:
    verdict = result["verdict"]
    lines: list[RenderableType] = [Text(verdict["sentence"], style=_LEVEL_STYLE[verdict["level"]])]
    for threshold in verdict["thresholds"]:
        limits = (
            "beyond that"
            if threshold["mean_kl"] is None
            else f"mean KL up to {nats(threshold['mean_kl'])}, anywhere up to {nats(threshold['max_kl'])}"
        )
        lines.append(Text(f"  {threshold['level']} ({limits}): {threshold['meaning']}", style="dim"))
    return Group(*lines)
