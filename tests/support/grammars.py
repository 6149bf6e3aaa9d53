"""Grammars made ready for a test's tokenizer, and answers drawn through them without a model."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from manylora.server.errors import RequestError
from manylora.server.grammars.compiler import GrammarCompiler
from manylora.server.grammars.grammar import CompiledGrammar, GrammarState
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import VOCAB, byte_tokenizer

Outcome = CompiledGrammar | RequestError


def tokenizer_of_bytes() -> Tokenizer:
    """One token a byte, and three control tokens."""
    return Tokenizer(byte_tokenizer())


def compiled(
    specs: Iterable[GrammarSpec], tokenizer: Tokenizer | None = None, width: int = VOCAB
) -> list[Outcome]:
    """What becomes of each grammar."""
    reader = tokenizer_of_bytes() if tokenizer is None else tokenizer

    async def run() -> list[Outcome]:
        compiler = GrammarCompiler(width)

        async def one(spec: GrammarSpec) -> Outcome:
            try:
                return await compiler.compile(spec, reader)
            except RequestError as error:
                return error

        try:
            return [await one(spec) for spec in specs]
        finally:
            await compiler.close()

    return asyncio.run(run())


def grammar(spec: GrammarSpec, tokenizer: Tokenizer | None = None) -> CompiledGrammar:
    """A grammar that is taken."""
    (made,) = compiled([spec], tokenizer)
    assert isinstance(made, CompiledGrammar), made
    return made


def refusal(spec: GrammarSpec, tokenizer: Tokenizer | None = None) -> RequestError:
    """The error of a grammar that is not taken."""
    (error,) = compiled([spec], tokenizer)
    assert isinstance(error, RequestError), f"{spec} is taken"
    return error


def allowed(state: GrammarState) -> set[int]:
    """The tokens that may follow."""
    return set(np.flatnonzero(np.unpackbits(state.allowed.view(np.uint8), bitorder="little")).tolist())


def accepts(made: CompiledGrammar, ids: Iterable[int], end: int) -> bool:
    """Whether an answer of these tokens is never cut off, and may end."""
    state = made.start()
    state.take([])
    for token in ids:
        if token not in allowed(state):
            return False
        state.take([token])
    return end in allowed(state)


def takes(made: CompiledGrammar, text: str, tokenizer: Tokenizer) -> bool:
    """Whether ``text`` can be an answer."""
    (end,) = tokenizer.eos_ids
    return accepts(made, tokenizer.encode(text, add_special_tokens=False), end)


def walk(made: CompiledGrammar, seed: int, tokenizer: Tokenizer, most: int = 2000) -> str | None:
    """An answer of random tokens that the grammar allows; None if it is not over after ``most``."""
    rng, ids = random.Random(seed), list[int]()
    state = made.start()
    state.take([])
    while len(ids) < most:
        token = rng.choice(sorted(allowed(state)))
        if token in tokenizer.eos_ids:
            return tokenizer.decode(ids)
        ids.append(token)
        state.take([token])
        assert state.fault is None, state.fault
    return None


def spellings(instance: Any) -> list[str]:
    """An instance as JSON, compact and as models like to write it."""
    compact = json.dumps(instance, ensure_ascii=False, separators=(",", ":"))
    return [
        compact,
        json.dumps(instance, ensure_ascii=False),
        json.dumps(instance, ensure_ascii=False, indent=2),
        json.dumps(instance, ensure_ascii=False, indent=4),
        json.dumps(instance, ensure_ascii=False, indent="\t"),
    ]
