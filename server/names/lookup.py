"""Names that this server does not know: a look into the registry, and then into the configured sources."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from manylora.adapters.errors import AdapterError, StoreError
from manylora.server.errors import QueueFull
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.threads import LimitedWork

logger = logging.getLogger(__name__)

MAX_RUNNING = 64  # names looked up at the same time; further unknown names are told to try again
_MAX_MISSES = 10_000  # names that are remembered not to exist
MISS_SECONDS = 5.0  # for which they are, where sources were asked
_REGISTRY_MISS_SECONDS = 0.25  # and where only the registry was
_Asked = tuple[str, bool]  # a name, and whether sources are asked for it as well


class Lookup:
    """Finds out what an unknown name means. Requests for the same name share one lookup."""

    def __init__(
        self,
        mirror: RegistryMirror,
        find: Callable[[str], str | None] | None,
        publish: Callable[[str, str], Awaitable[object]],
        asking: LimitedWork,
        miss_seconds: float = MISS_SECONDS,
    ) -> None:
        """Nothing is asked until :meth:`find`.

        Args:
            mirror: what is known of the registry.
            find: ``find(name)`` says where there is an adapter of that name, or None; it blocks. Without it
                only the registry is asked.
            publish: ``publish(name, source)`` brings an adapter in.
            asking: runs ``find``.
            miss_seconds: for which a name is remembered not to exist, where sources were asked.
        """
        self._mirror = mirror
        self._find_source = find
        self._publish = publish
        self._running: dict[_Asked, asyncio.Task[None]] = {}
        seconds = _REGISTRY_MISS_SECONDS if find is None else miss_seconds
        self._misses: TTLCache[_Asked, AdapterError] = TTLCache(_MAX_MISSES, seconds)
        self._asking = asking

    async def find(self, name: str, *, sources: bool = True) -> None:
        """Return once the mirror has ``name``, as it is now. Whoever waits may be cancelled.

        Without ``sources`` only the registry is asked.

        Raises:
            AdapterNotFound: neither the registry nor a source has it. This is remembered for seconds.
            SourceMissing: a source could not be asked. So is this.
            StoreError: the registry could not be asked. So is this.
            ArtifactError, AdapterTooLarge: a source has it, but it can't be served. So is this.
            QueueFull: too many unknown names are being looked up.
        """
        asked = name, sources
        missed = self._misses.get(asked)
        if missed is not None:
            raise missed
        if asked not in self._running:
            if len(self._running) >= MAX_RUNNING:
                raise QueueFull(f"{MAX_RUNNING} unknown adapters are being looked up; try again later", 1.0)
            task = self._running[asked] = asyncio.create_task(self._find(*asked))
            task.add_done_callback(lambda done: self._ended(asked, done))
        await asyncio.shield(self._running[asked])

    async def close(self) -> None:
        """Give up what is being looked up."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _ended(self, asked: _Asked, task: asyncio.Task[None]) -> None:
        del self._running[asked]
        self._misses.pop(asked, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AdapterError):
            self._misses[asked] = error

    async def _find(self, name: str, sources: bool) -> None:
        try:
            await self._mirror.refresh(name)
        except StoreError as error:  # where the registry is, is nobody's business who asks for an answer
            logger.warning("%s can't be looked up: %s", name, error)
            raise type(error)(
                f"this server doesn't know {name!r}, and the adapter registry can't be asked for it"
            ) from None
        if self._is_known(name):
            return
        source = await self._ask_sources(name) if sources else None
        if source is None:
            self._mirror.get(name)  # which says that there is none
        else:
            logger.info("adapter %s is asked for, and found at %s", name, source)
            await self._publish(name, source)

    def _is_known(self, name: str) -> bool:
        return name in self._mirror.names or name in self._mirror.aliases

    async def _ask_sources(self, name: str) -> str | None:
        if self._find_source is None:
            return None
        return await self._asking.run(self._find_source, name)
