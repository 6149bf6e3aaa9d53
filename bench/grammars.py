"""What answers with grammars cost: the others' time between tokens, and their own throughput.

Run as ``python -m bench.grammars``. The engine is stepped by hand in this process. Batches with and without
grammars take turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Annotated, Any

import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from manylora.server.assembly import build_service
from manylora.server.engine import sequence as answers
from manylora.server.engine.sequence import ResolvedMix, SamplingParams
from manylora.server.grammars.compiler import GrammarCompiler
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.options.settings import Settings
from manylora.server.service import Service

SHARES = (0.0, 0.25, 0.75, 1.0)  # of the rows that have a grammar
_PROMPT = 30  # tokens

_PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
    },
    "required": ["name", "age"],
}
_CODE = {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}(/[a-z]+)?$"}
_EITHER = {"anyOf": [_PERSON, {"type": "object", "properties": {"code": _CODE}, "required": ["code"]}]}


def endless() -> list[GrammarSpec]:
    """Grammars of every sort that an answer never comes to the end of."""
    return [
        *(
            GrammarSpec.json_schema({"type": "array", "items": each, "minItems": 1000}, param="")
            for each in (_PERSON, _EITHER, {})
        ),
        GrammarSpec.regex(r"([A-Z][a-z]{2,9}( [a-z]{1,12}){2,9}\. )+", param=""),
        GrammarSpec.lark(
            'start: sum (";" sum)*\nsum: TERM ("+" TERM)*\nTERM: /[0-9]{1,4}/ | /[a-z]{1,6}/', param=""
        ),
    ]


async def compiled(service: Service) -> tuple[list[CompiledGrammar], list[float]]:
    """The grammars, and the milliseconds that compiling each of them took, the vocabulary being there."""
    compiler, made, times = GrammarCompiler(service.core.vocab_size), [], []
    await compiler.compile(GrammarSpec.regex("a", param=""), service.tokenizer)
    for spec in endless():
        began = perf_counter()
        made.append(await compiler.compile(spec, service.tokenizer))
        times.append(round(1e3 * (perf_counter() - began), 2))
    await compiler.close()
    return made, times


class Batches:
    """Runs batches of answers on one engine; keeps the seconds between their tokens by share of grammars."""

    def __init__(self, service: Service, grammars: Sequence[CompiledGrammar], rows: int, tokens: int) -> None:
        self._engine = service.core
        self._grammars = grammars
        self._rows = rows
        self._tokens = tokens
        self._ids = count(1)
        self.between: dict[float, list[float]] = {share: [] for share in SHARES}

    def run(self, share: float) -> None:
        """One batch, of which ``share`` of the rows have a grammar."""
        engine = self._engine
        asked = [self._answer(i, i < round(share * self._rows)) for i in range(self._rows)]
        for each in asked:
            engine.add(each)
        last = None
        while engine.has_work:
            together = all(each.num_output_tokens > 0 and each.finish_reason is None for each in asked)
            engine.step()
            now = perf_counter()
            if last is not None and together:
                self.between[share].append(now - last)
            last = now
        reasons = {each.finish_reason for each in asked}
        assert reasons == {answers.FinishReason.LENGTH}, reasons

    def _answer(self, row: int, constrained: bool) -> answers.Sequence:
        params = SamplingParams(
            max_tokens=self._tokens,
            temperature=0.8,
            top_p=0.95,
            seed=row,
            ignore_eos=True,
            grammar=self._grammars[row % len(self._grammars)] if constrained else None,
        )
        prompt = tuple(range(100 + row, 100 + row + _PROMPT))
        return answers.Sequence(next(self._ids), prompt, params, ResolvedMix())


def figures(between: Mapping[float, Sequence[float]], rows: int) -> dict[str, Any]:
    """Milliseconds between tokens, and what they are of those of a batch without grammars."""
    free = between[0.0]
    found: dict[str, Any] = {}
    for share, seconds in between.items():
        found[f"{share:.0%}"] = {
            "median_ms": round(1e3 * median(seconds), 3),
            "p99_ms": round(1e3 * p99(seconds), 3),
            "tokens_per_second": round(rows * len(seconds) / sum(seconds), 1),
            "p99_ratio": round(p99(seconds) / p99(free), 3),
            "throughput_ratio": round((sum(free) / len(free)) / (sum(seconds) / len(seconds)), 3),
        }
    return found


def p99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[-1]


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(min=4, help="Answers at once.")] = 16,
    output_tokens: Annotated[int, typer.Option(min=20, help="Of every answer.")] = 150,
    turns: Annotated[int, typer.Option(min=1, help="Batches of each share.")] = 5,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        path = resolve_base(base)
        settings = Settings(
            model=str(path), data_dir=Path(scratch), adapter_memory=64 << 20, kv_cache_memory=1 << 30
        )
        service = build_service(settings, path)
        grammars, compile_ms = asyncio.run(compiled(service))
        batches = Batches(service, grammars, rows, output_tokens)
        batches.run(1.0)  # lexers learn what they need once
        batches.between[1.0].clear()
        for _ in range(turns):
            for share in SHARES:
                batches.run(share)
        asyncio.run(service.stop())
    found = figures(batches.between, rows)
    for name, each in found.items():
        print(f"{name:>5} with a grammar: {each}")
    setting = {
        **machine.setting(),
        "base": base,
        "rows": rows,
        "output_tokens": output_tokens,
        "turns": turns,
    }
    line = json.dumps({"bench": "grammars", **setting, "compile_ms": compile_ms, "shares": found})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-grammars")
    print(line)


if __name__ == "__main__":
    typer.run(main)
