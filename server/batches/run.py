"""Requests of a file asked one beside the other, as many as may be while others are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from manylora.server.batches.lines import Line, LineFault, answered, unanswered
from manylora.server.batches.results import Results

_WAIT = 0.2  # seconds, at first, before a request that found the server full is asked again
_LONGEST_WAIT = 5.0
_FULL, _UNAVAILABLE = 429, 503
_TRIES = 6  # of a request that is told 503


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answered."""

    status: int
    body: Any
    request_id: str


Ask = Callable[[str, Mapping[str, Any]], Awaitable[Answer]]  # path, body


class Run:
    """The requests of one batch."""

    def __init__(self, ask: Ask, results: Results, room: Callable[[int], int]) -> None:
        """
        Args:
            ask: asks a route.
            results: takes the answers; what they hold already is not asked again.
            room: how many requests may run at a time, of the number of those that do; at least 1.
        """
        self._ask, self._results, self._room = ask, results, room
        self._running: set[asyncio.Task[None]] = set()
        self.stopped = False  # set to send nothing more; what runs is waited for

    async def all(
        self,
        lines: Iterable[Line | LineFault],
        *,
        until: float | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask every line that has no result yet.

        Args:
            lines: read as they are needed.
            until: monotonic seconds, after which what was not asked becomes an error.
            told: called after each result.

        Raises:
            OSError: results can't be written.
        """
        try:
            for line in lines:
                if isinstance(line, LineFault) or line.custom_id in self._results.done:
                    continue
                while len(self._running) >= self._room(len(self._running)) and not self.stopped:
                    await self._some()
                if self.stopped:
                    break
                if until is not None and monotonic() > until:
                    message = "the batch expired before this request was sent"
                    self._results.write(unanswered(line, "batch_expired", message), failed=True)
                    told()
                    continue
                self._running.add(asyncio.create_task(self._one(line, told, until)))
                await asyncio.sleep(0)  # what was sent is counted by those who ask how much runs
            while self._running:
                await self._some()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _some(self) -> None:
        """Wait until a request is through."""
        if not self._running:
            await asyncio.sleep(_WAIT)
            return
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _one(self, line: Line, told: Callable[[], None], until: float | None) -> None:
        wait, tries = _WAIT, 0
        while True:
            answer = await self._ask(line.url, line.body)
            tries += answer.status == _UNAVAILABLE
            again = answer.status == _FULL or (answer.status == _UNAVAILABLE and tries < _TRIES)
            if not again or self.stopped or (until is not None and monotonic() > until):
                break
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        written = answered(line, answer.status, answer.body, answer.request_id)
        self._results.write(written, failed=answer.status != 200)
        told()
