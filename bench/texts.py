"""Whether the kernels say the same: greedy answers to fifty questions, by native and by PyTorch kernels.

Run as ``python -m bench.texts``: the server's parts in this process, without HTTP. The questions go in turn
to the base, to the example adapters and to a mix of two, all in one batch.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from manylora.adapters.mix import parse_mix
from manylora.server.assembly import build_service
from manylora.server.cli.loadgen.generated_prompts import english
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import SamplingParams, TokenLogprob
from manylora.server.options.settings import Settings
from manylora.server.service import Service

ADAPTERS = Path(__file__).parent.parent / "examples" / "adapters"
NAMES = ("json", "pirate", "support")
MODELS = ("", *NAMES, "json*0.5+pirate*0.5")  # "" is the base
QUESTIONS = tuple((Path(__file__).parent / "questions.txt").read_text().splitlines())
_LONG = 7  # every such question comes after a text that it has nothing to do with
_LONG_WORDS = 150
_TOP = 20  # likeliest tokens that the gaps are looked up in


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to compute."""

    kernels: Literal["native", "pytorch"]
    dtype: Literal["bf16", "fp32"]
    max_batch_tokens: int = 512


NATIVE = Setting("native", "bf16")
EXACT = Setting("pytorch", "fp32")
ROUNDED = Setting("pytorch", "bf16")
OTHER_CHUNKS = Setting("pytorch", "bf16", max_batch_tokens=100)


@dataclass(frozen=True, slots=True)
class Text:
    """A greedy answer, and what its tokens were chosen from."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token in which two answers to a question differ."""

    question: int
    model: str
    token: int  # its place in the answer
    gap: float  # by how much the reference prefers its own token, in logits; 0 is a tie


def texts(base: Path, setting: Setting, questions: Sequence[str], tokens: int) -> list[Text]:
    """The answer to each question, at most ``tokens`` long, all computed together."""
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        settings = Settings(
            model=str(base),
            data_dir=Path(scratch),
            device="cpu",
            dtype=setting.dtype,
            kernels=setting.kernels,
            max_batch_tokens=setting.max_batch_tokens,
            adapter_memory=128 << 20,
            kv_cache_memory=1 << 30,
        )
        return asyncio.run(_answers(build_service(settings, base), questions, tokens))


async def _answers(service: Service, questions: Sequence[str], tokens: int) -> list[Text]:
    await service.start()
    try:
        for name in NAMES:
            await service.adapters.admin.load(name, ADAPTERS / name)
        asked = (
            _answer(service, prompt(question, number), MODELS[number % len(MODELS)], tokens)
            for number, question in enumerate(questions)
        )
        return list(await asyncio.gather(*asked))
    finally:
        await service.stop()


def prompt(question: str, number: int) -> str:
    """A chat in the template of SmolLM2, some with a long beginning."""
    if number % _LONG == 0:
        question = f"{english(_LONG_WORDS, f'texts-{number}')}\n\n{question}"
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


async def _answer(service: Service, text: str, model: str, tokens: int) -> Text:
    adapters = service.adapters
    async with adapters.resolve(parse_mix(model) if model else ()) as held:
        await held.admit()
        running = held.share()
    params = SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=_TOP)
    request = GenerateRequest(tuple(service.tokenizer.encode(text)), params)
    logprobs = [entry async for delta in service.engine.submit(request, running) for entry in delta.logprobs]
    return Text(tuple(entry.token_id for entry in logprobs), tuple(logprobs))


def differences(found: Sequence[Text], reference: Sequence[Text]) -> list[Difference]:
    """The answers that are not the reference's, each with the gap of its first other token."""
    pairs = zip(found, reference, strict=True)
    return [
        _difference(number, *pair)
        for number, pair in enumerate(pairs)
        if pair[0].token_ids != pair[1].token_ids
    ]


def _difference(number: int, found: Text, reference: Text) -> Difference:
    together = zip(found.token_ids, reference.token_ids, strict=False)
    place = next(i for i, (one, other) in enumerate(together) if one != other)
    chosen = reference.logprobs[place]
    gap = chosen.logprob - dict(chosen.top).get(found.token_ids[place], -math.inf)
    return Difference(number, MODELS[number % len(MODELS)], place, round(gap, 4))


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.")] = 32,
) -> None:
    """Compare; prints one JSON line and keeps it in bench/results."""
    directory = resolve_base(base)
    found = {s: texts(directory, s, QUESTIONS, tokens) for s in (NATIVE, EXACT, ROUNDED, OTHER_CHUNKS)}
    compared = [
        {"texts_of": asdict(one), "reference": asdict(other), "same": len(QUESTIONS) - len(differ)}
        | {"differences": [asdict(difference) for difference in differ]}
        for one, other in ((NATIVE, EXACT), (ROUNDED, EXACT), (NATIVE, ROUNDED), (OTHER_CHUNKS, ROUNDED))
        for differ in [differences(found[one], found[other])]
    ]
    for row in compared:
        print(row["texts_of"], "against", row["reference"], "same:", row["same"])
    setting = {**machine.setting(), "base": base, "tokens": tokens, "questions": len(QUESTIONS)}
    line = json.dumps({"bench": "texts", **setting, "compared": compared})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-texts")
    print(line)


if __name__ == "__main__":
    typer.run(main)
