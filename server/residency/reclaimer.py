"""Frees revisions that no name has: device, host memory and disk, once no request holds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from manylora.adapters.errors import AdapterError
from manylora.server.residency.device_cache import DeviceCache
from manylora.server.residency.host_cache import HostCache
from manylora.server.residency.references import References
from manylora.server.residency.revision_loader import SHOWN_DIGITS, RevisionLoader

logger = logging.getLogger(__name__)


class Reclaimer:
    """Frees revisions in the background, each by one task. Lives on the event loop."""

    def __init__(
        self,
        loader: RevisionLoader,
        references: References,
        device: DeviceCache,
        host: HostCache,
        is_named: Callable[[str], bool],
    ) -> None:
        """``is_named(digest)`` tells whether some name has a revision."""
        self._loader = loader
        self._references = references
        self._device = device
        self._host = host
        self._is_named = is_named
        self._running: dict[str, asyncio.Task[int]] = {}

    def reclaim(self, digest: str) -> asyncio.Task[int]:
        """Free a revision that no name has, once no request holds it. The result: device bytes freed."""
        task = self._running.get(digest)
        if task is None:
            task = self._running[digest] = asyncio.create_task(self._reclaim(digest))
        return task

    async def forget_name(self, digest: str, name: str) -> None:
        """Record that ``name`` was deleted, beside a revision that stays, as another name has it."""
        await self._host.run(self._loader.forget_name, digest, name)

    @property
    def num_running(self) -> int:
        """Revisions that no name has and that are not freed yet."""
        return len(self._running)

    async def close(self) -> None:
        """Stop; what is not freed yet stays on disk, where the next start finds it."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _reclaim(self, digest: str) -> int:
        freed = 0
        try:
            while not self._is_named(digest):
                await self._references.wait_until(
                    lambda: self._is_named(digest) or not self._references.count([digest])
                )
                if self._is_named(digest) or self._references.count([digest]):  # the latter when closing
                    break
                freed += await self._free(digest)
                if not self._references.knows(digest):
                    break
            return freed
        finally:
            del self._running[digest]

    async def _free(self, digest: str) -> int:
        """Drop a nameless, unused revision everywhere; returns the device bytes freed.

        It may be given a name again meanwhile: then it stays on disk, and may be requested.
        """
        revision = self._references.revision(digest)
        revision.gone = True  # nothing but a request brings it in from now on
        self._host.drop(digest)
        freed = await self._device.remove(revision)
        try:
            await self._host.run(self._loader.reclaim, digest)
        except AdapterError as error:  # the name is gone and the memory free: that is what was asked for
            logger.warning("the stored copy of revision %s stays: %s", digest[:SHOWN_DIGITS], error)
        revision.gone = not self._is_named(digest)
        if revision.gone:
            self._references.forget(digest)
        return freed
