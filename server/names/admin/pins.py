"""Which revisions are pinned: the current ones of pinned names."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.residency.residency import Residency


class Pins:
    """Keeps the current revisions of pinned names on the device, as names change."""

    def __init__(self, mirror: RegistryMirror, residency: Residency) -> None:
        self._mirror = mirror
        self._residency = residency
        self._pinned: dict[str, str] = {}  # digest by name
        self._arriving: set[asyncio.Future[None]] = set()  # revisions on their way to the device

    def update(self, names: Collection[str]) -> None:
        """Look at ``names``, which are different from before."""
        pinned = dict(self._pinned)
        for name in names:
            record = self._mirror.names.get(name)
            if record is not None and record.pinned and record.digest is not None:
                pinned[name] = record.digest
            else:
                pinned.pop(name, None)
        if pinned == self._pinned:
            return
        self._pinned = pinned
        for arrival in self._residency.pin(pinned.values()):
            self._arriving.add(arrival)
            arrival.add_done_callback(self._arriving.discard)

    async def arrived(self) -> None:
        """Wait until every pinned revision is on the device, or can't be brought there."""
        await asyncio.gather(*self._arriving, return_exceptions=True)
