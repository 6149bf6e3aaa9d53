"""Names that this server does not know: a look into the registry, and then into the configured sources."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from adapters.errors import AdapterError, SourceForbidden, SourceMissing
from server.engine.catalogue import Catalogue
from server.errors import QueueFull

logger = logging.getLogger(__name__)

NAME_FIELD = "{name}"  # in a template, where the adapter's name goes

_MAX_RUNNING = 64  # names looked up at the same time; further unknown names are told to try again
_MAX_MISSES = 10_000  # names that are remembered not to exist
_MISS_SECONDS = 5.0  # for which they are, where sources were asked
_REGISTRY_MISS_SECONDS = 0.25  # and where only the registry was


class Lookup:
    """Finds out what an unknown name means. Requests for the same name share one lookup."""

    def __init__(
        self,
        catalogue: Catalogue,
        templates: Sequence[str],
        publish: Callable[[str, str], Awaitable[object]],
    ) -> None:
        """``templates`` are sources with ``{name}`` in them; ``publish(name, source)`` brings one in."""
        self._catalogue = catalogue
        self._templates = tuple(templates)
        self._publish = publish
        self._running: dict[str, asyncio.Task[None]] = {}
        self._misses: OrderedDict[str, tuple[float, AdapterError]] = OrderedDict()  # oldest first

    async def find(self, name: str) -> None:
        """Return once the catalogue has ``name``. Whoever waits may be cancelled, the lookup goes on.

        Raises:
            AdapterNotFound: neither the registry nor a source has it. This is remembered for seconds.
            ArtifactError, AdapterTooLarge: a source has it, but it can't be served. So is this.
            QueueFull: too many unknown names are being looked up.
        """
        missed = self._misses.get(name)
        if missed is not None and missed[0] > monotonic():
            raise missed[1]
        if name not in self._running:
            if len(self._running) >= _MAX_RUNNING:
                raise QueueFull(f"{_MAX_RUNNING} unknown adapters are being looked up; try again later", 1.0)
            task = self._running[name] = asyncio.create_task(self._find(name))
            task.add_done_callback(lambda done: self._ended(name, done))
        await asyncio.shield(self._running[name])

    async def close(self) -> None:
        """Give up what is being looked up."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._running[name]
        self._misses.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AdapterError):
            seconds = _MISS_SECONDS if self._templates else _REGISTRY_MISS_SECONDS
            self._misses[name] = monotonic() + seconds, error
            while len(self._misses) > _MAX_MISSES:
                self._misses.popitem(last=False)

    async def _find(self, name: str) -> None:
        await self._catalogue.refresh(name)
        for template in self._templates:
            if name in self._catalogue.names or name in self._catalogue.aliases:
                return
            source = template.replace(NAME_FIELD, name)
            try:
                await self._publish(name, source)
                return
            except (SourceMissing, SourceForbidden) as error:
                logger.debug("adapter %s is not at %s: %s", name, source, error)
            except AdapterError as error:
                logger.warning("adapter %s, found at %s, can't be served: %s", name, source, error)
                raise
        self._catalogue.get(name)
