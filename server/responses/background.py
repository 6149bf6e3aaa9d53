"""Responses that are worked on while nobody waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from manylora.server.responses.stored import Event, StoredResponse, StoredResponses

logger = logging.getLogger(__name__)


@dataclass
class _Running:
    now: StoredResponse  # whose events, if they are kept, are added to in place
    task: asyncio.Task[None]
    close: Callable[[], Awaitable[None]]
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a new one after each change
    has_ended: bool = False

    def tell(self) -> None:
        """Wake those who follow."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Background:
    """The responses of this process that run in the background. All methods run on its event loop."""

    def __init__(self, stored: StoredResponses) -> None:
        """``stored`` takes each when it begins and when it ends."""
        self._stored = stored
        self._running: dict[str, _Running] = {}

    def start(
        self,
        work: AsyncIterator[StoredResponse],
        first: StoredResponse,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin: ``work`` yields the response as it is at each step; ``close`` is called however it ends."""
        task = asyncio.create_task(self._run(first.id, work), name=first.id)
        self._running[first.id] = _Running(_with_status(first, "queued"), task, close)

    def get(self, response_id: str) -> StoredResponse | None:
        """The response as it is now; None if it does not run here."""
        running = self._running.get(response_id)
        return None if running is None else running.now

    async def follow(self, response_id: str, place: int) -> AsyncIterator[list[Event]]:
        """The events of one that runs, from the one at ``place`` on, as they come; to its end.

        Nothing if it does not run here, or its events are not kept.
        """
        running = self._running.get(response_id)
        while running is not None and running.now.events is not None:
            events = running.now.events[place:]
            if events:
                place += len(events)
                yield events
            elif running.has_ended:
                return
            else:
                await running.changed.wait()

    async def cancel(self, response_id: str) -> StoredResponse | None:
        """End one that runs; what it has so far stays. None if it does not run here."""
        running = self._running.get(response_id)
        if running is None:
            return None
        running.task.cancel()
        with suppress(asyncio.CancelledError):
            await running.task
        if response_id in self._running:  # it was cancelled before it had begun
            running.now = _with_status(running.now, "cancelled")
            await self._end(response_id, running)
        return running.now

    async def stop(self) -> None:
        """End all."""
        for response_id in list(self._running):
            await self.cancel(response_id)

    async def _run(self, response_id: str, work: AsyncIterator[StoredResponse]) -> None:
        running = self._running[response_id]
        kept = asyncio.ensure_future(self._stored.put(running.now))
        try:
            await asyncio.shield(kept)
            async for now in work:
                running.now = now
                running.tell()
        except asyncio.CancelledError:
            running.now = _with_status(running.now, "cancelled")
        except Exception:
            logger.exception("response %s failed", response_id)
            running.now = _with_status(running.now, "failed")
        finally:
            await asyncio.wait([kept])  # what is kept first must not be written over what is kept last
            await self._end(response_id, running)

    async def _end(self, response_id: str, running: _Running) -> None:
        try:
            await running.close()
            await self._stored.put(running.now)
        finally:
            del self._running[response_id]
            running.has_ended = True
            running.tell()


def _with_status(stored: StoredResponse, status: str) -> StoredResponse:
    return replace(stored, response={**stored.response, "status": status})
