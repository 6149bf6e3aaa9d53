"""The requests of a comparison on their way to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from manylora.server.api.compare.plan import Target
from manylora.server.api.generate.generation import Generation, submit
from manylora.server.api.http.error_context import blame
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.errors import RequestError
from manylora.server.service import Service

T = TypeVar("T")


class Submitter:
    """Submits requests to targets of a comparison, and says when the first ones have been taken."""

    def __init__(self, service: Service, targets: Sequence[Target], first_requests: int) -> None:
        """``begun`` is set once ``first_requests`` requests have been taken."""
        self.begun = asyncio.Event()
        self._service = service
        self._targets = targets
        self._missing = first_requests

    @asynccontextmanager
    async def generate(self, target: int, request: GenerateRequest) -> AsyncGenerator[Generation, None]:
        """What the engine generates for ``request``; whatever of it still runs is aborted with the block.

        The target is held once more for it: nobody waits for adapters and has others already.

        Raises:
            Blamed: the target can't run it.
            AdapterUnavailable, QueueFull, EngineDead: the engine doesn't take it.
        """
        with (
            self._targets[target].resolved.held.again() as held,
            blame(f"targets[{target}]", RequestError),
        ):
            found = self._targets[target].resolved
            generation = await submit(self._service, held, [request], tenant=found.tenant, least=found.least)
        try:
            self._missing -= 1
            if self._missing == 0:
                self.begun.set()
            yield generation
        finally:
            await generation.aclose()


async def gather_or_cancel(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of coroutines that run together, in their order.

    If one fails, or this is cancelled, the others are cancelled and have ended when this raises.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
