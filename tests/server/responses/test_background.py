"""However a response in the background ends, what works on it is closed and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from manylora.server.responses.background import Background
from manylora.server.responses.stored import StoredResponse, StoredResponses


class Store:
    """Keeps what it is given, as slowly as it is told."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.proceed = asyncio.Event()

    async def put(self, stored: StoredResponse) -> bool:
        await self.proceed.wait()
        self.kept.append(stored.response["status"])
        return True


@pytest.mark.parametrize("turns", [0, 1, 2, 3])  # of the event loop, before it is cancelled
async def test_one_that_is_cancelled_is_closed_however_far_it_is(turns: int) -> None:
    store, closed = Store(), []
    first = StoredResponse({"id": "resp_1", "status": "in_progress", "output": []}, [], [])

    async def work() -> AsyncIterator[StoredResponse]:
        while True:
            await asyncio.sleep(0)
            yield first

    async def close() -> None:
        closed.append(1)

    background = Background(cast("StoredResponses", cast("Any", store)))
    if turns > 1:
        store.proceed.set()
    background.start(work(), first, close)
    for _ in range(turns):
        await asyncio.sleep(0)
    store.proceed.set()
    cancelled = await background.cancel("resp_1")
    assert cancelled is not None
    assert cancelled.response["status"] == store.kept[-1] == "cancelled"
    assert closed == [1]
    assert background.get("resp_1") is None


async def test_what_is_kept_first_is_not_written_over_what_is_kept_last() -> None:
    """Writing takes a thread, and who cancels does not wait for that of the beginning."""
    kept: list[str] = []

    class Slow(Store):
        async def put(self, stored: StoredResponse) -> bool:
            status = stored.response["status"]
            await asyncio.shield(
                asyncio.ensure_future(self._later(status, 0.05 if status == "queued" else 0.0))
            )
            return True

        async def _later(self, status: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            kept.append(status)

    async def work() -> AsyncIterator[StoredResponse]:
        yield first

    async def close() -> None:
        pass

    first = StoredResponse({"id": "resp_1", "status": "in_progress", "output": []}, [], [])
    background = Background(cast("StoredResponses", cast("Any", Slow())))
    background.start(work(), first, close)
    await asyncio.sleep(0.01)
    await background.cancel("resp_1")
    assert kept == ["queued", "cancelled"]
