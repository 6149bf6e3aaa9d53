"""From what a request asks for to a grammar that its answers follow: tried, compiled once, kept."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from manylora.server.errors import QueueFull
from manylora.server.grammars.checks import GrammarChecks
from manylora.server.grammars.grammar import CompiledGrammar, Matcher
from manylora.server.grammars.refusal import GrammarRefused
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.grammars.vocabulary import Vocabulary
from manylora.server.model.text.tokenizer import Tokenizer

_MAX_COMPILED = 64  # grammars kept for each tokenizer
_MAX_WAITING = 64  # grammars that wait to be compiled
_AT_A_TIME = 2


class GrammarCompiler:
    """Compiles grammars for the base's tokenizer and those of adapters. Belongs to one event loop."""

    def __init__(self, width: int, checks: GrammarChecks | None = None) -> None:
        """``width``: tokens that the base's head has."""
        self._width = width
        self.checks = GrammarChecks() if checks is None else checks
        self._of: WeakKeyDictionary[Tokenizer, _Grammars] = WeakKeyDictionary()
        self._free = asyncio.Semaphore(_AT_A_TIME)
        self._waiting = 0

    async def compile(self, spec: GrammarSpec, tokenizer: Tokenizer) -> CompiledGrammar:
        """The grammar for answers that ``tokenizer`` reads.

        Raises:
            RequestError: answers can't be held to it, or it takes too long to compile; names the place.
            QueueFull: too many grammars wait to be compiled.
        """
        grammars = self._of.setdefault(tokenizer, _Grammars())
        found = grammars.compiled.get(spec)
        if found is not None and not found.matcher.is_worn:
            return found.asked_by(spec.param)
        task = grammars.in_making.get(spec)
        if task is None:
            if self._waiting >= _MAX_WAITING:
                raise QueueFull(f"{self._waiting} grammars wait to be compiled; try again later", 1.0)
            self._waiting += 1
            task = asyncio.ensure_future(self._make(grammars, spec, tokenizer))
            task.add_done_callback(_noticed)
            grammars.in_making[spec] = task
        try:
            made = await asyncio.shield(task)
        except GrammarRefused as refused:
            raise refused.blamed(spec.param) from refused
        return made.asked_by(spec.param)

    async def close(self) -> None:
        """End the process in which grammars are tried."""
        await self.checks.close()

    async def _make(self, grammars: _Grammars, spec: GrammarSpec, tokenizer: Tokenizer) -> CompiledGrammar:
        try:
            async with self._free:
                if grammars.vocabulary is None:
                    grammars.vocabulary = await asyncio.to_thread(Vocabulary, tokenizer, self._width)
                checked = await self.checks.check(spec, grammars.vocabulary)
                matcher = await asyncio.to_thread(Matcher, checked.text, grammars.vocabulary)
            made = grammars.compiled[spec] = CompiledGrammar(matcher, spec.param, checked.left_out)
            return made
        finally:
            self._waiting -= 1
            del grammars.in_making[spec]


def _noticed(task: asyncio.Future[CompiledGrammar]) -> None:
    """Look at how a compilation ended: whoever asked for it may have left."""
    if not task.cancelled():
        task.exception()


class _Grammars:
    """What is kept for one tokenizer, as long as that is."""

    def __init__(self) -> None:
        self.vocabulary: Vocabulary | None = None
        self.compiled: LRUCache[GrammarSpec, CompiledGrammar] = LRUCache(_MAX_COMPILED)
        self.in_making: dict[GrammarSpec, asyncio.Future[CompiledGrammar]] = {}
