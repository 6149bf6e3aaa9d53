"""Deleting names: refused at once, drained, then freed everywhere."""

from __future__ import annotations

import asyncio
from time import monotonic

from manylora.adapters.errors import AdapterInUse, AdapterNotFound
from manylora.adapters.registry.records import NameRecord, State
from manylora.server.names.aliases import aliases_of
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.status import Deleted
from manylora.server.residency.reclaimer import Reclaimer
from manylora.server.residency.references import References

DRAIN_SECONDS = 30.0  # how long a deletion waits for running requests before it answers


class Deletions:
    """Deletes names, each by one task that is seen through. Lives on the event loop."""

    def __init__(
        self, mirror: RegistryMirror, references: References, reclaimer: Reclaimer, base: str
    ) -> None:
        """``base`` is the base model's name."""
        self._mirror = mirror
        self._references = references
        self._reclaimer = reclaimer
        self._base = base
        self._running: dict[str, asyncio.Task[Deleted]] = {}  # by name

    async def delete(self, name: str, deadline: float = DRAIN_SECONDS) -> Deleted:
        """Forget ``name``: new requests are refused at once, running ones finish, then all of it is freed.

        Answers after ``deadline`` seconds at the latest. What still runs then keeps its memory until it
        ends. Running are the requests that asked for this name; what they run with is freed unless another
        name has it, once no request holds it, whatever it was called there.

        Raises:
            AdapterNotFound: no such name, or it is being deleted already.
            AdapterInUse: an alias points to it; change or delete the alias first.
        """
        if name not in self._mirror.names or self._aliases_of(name):  # as far as this server knows
            await self._mirror.follow()
        record = self._mirror.get(name)
        if name in self._running:
            raise AdapterNotFound(f"the adapter {name!r} is being deleted already")
        aliases = self._aliases_of(name)
        if aliases:
            raise AdapterInUse(f"the alias {aliases[0]!r} points to {name!r}: change or delete it first")
        work = asyncio.create_task(self._delete(record, monotonic() + deadline))
        self._running[name] = work
        work.add_done_callback(lambda _: self._running.pop(name))
        return await asyncio.shield(work)  # seen through, whoever goes away

    async def close(self) -> None:
        """Wait for what has begun."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _aliases_of(self, name: str) -> list[str]:
        return aliases_of(name, self._mirror.aliases, self._base)

    async def _delete(self, record: NameRecord, deadline: float) -> Deleted:
        name, references = record.name, self._references
        with self._mirror.refusing(name):
            await self._mirror.change(name, lambda registry: registry.names.drain(name))
        await references.wait_until(
            lambda: not self._is_draining(name) or not references.requests.of_name(name), deadline
        )
        try:
            await self._mirror.change(name, lambda r: r.names.remove(name, state=State.DRAINING))
        except AdapterNotFound:  # published again meanwhile, or removed by another server
            await self._mirror.refresh(name)
        running = references.requests.of_name(name)
        nameless = [digest for digest in record.history if not self._mirror.is_named(digest)]
        freeing = {digest: self._reclaimer.reclaim(digest) for digest in nameless}
        if name not in self._mirror.names:
            for digest in record.history:
                if digest not in nameless:
                    await self._reclaimer.forget_name(digest, name)
        if running:
            return Deleted(0, drained=False, running=running)
        # Requests for a name that was deleted before may still hold the same revisions.
        await references.wait_until(lambda: not references.count(nameless), deadline)
        free = [task for digest, task in freeing.items() if not references.count([digest])]
        return Deleted(sum(await asyncio.gather(*map(asyncio.shield, free))), drained=True, running=0)

    def _is_draining(self, name: str) -> bool:
        record = self._mirror.names.get(name)
        return record is not None and record.state is State.DRAINING
