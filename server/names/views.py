"""What is told of names: the facts of the registry beside what this server knows of them."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice

from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.server.metrics.metrics import Metrics
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.status import (
    EVERY_NAME,
    AdapterStatus,
    Filter,
    Registered,
    registered_of,
    status_of,
)
from manylora.server.residency.residency import BytesByTier, Residency


class Views:
    """Facts about names, put together from memory. Lives on the event loop."""

    def __init__(self, mirror: RegistryMirror, residency: Residency, metrics: Metrics) -> None:
        self._mirror = mirror
        self._residency = residency
        self._metrics = metrics

    def status(self, name: str) -> AdapterStatus:
        """Everything about a name; AdapterNotFound if there is no such name."""
        record = self._mirror.get(name)
        facts = self._mirror.facts(record.digest)
        lost = record.state is State.FAILED  # a name that has a revision fails for want of its files
        stored = 0 if facts is None or lost else facts.nbytes
        requests = self._residency.references.requests
        return status_of(
            record,
            facts,
            residency=BytesByTier(0, 0, 0)
            if facts is None
            else self._residency.bytes_by_tier(facts.digest, stored),
            references=requests.of_name(name),
            revision_references={digest: requests.of_revision(digest) for digest in record.history},
            traffic=self._metrics.requests.traffic(name),
            last_used=self._mirror.used.get(name),
        )

    async def revisions(self, name: str) -> list[RevisionRecord]:
        """The facts of every revision that ``name`` can be rolled back to, the latest first.

        Raises:
            AdapterNotFound: no such name.
        """
        return await self._mirror.all_facts(self._mirror.get(name).history)

    def page(self, wanted: Filter = EVERY_NAME, *, after: str = "", limit: int = 100) -> list[AdapterStatus]:
        """The first ``limit`` names beyond ``after``, sorted, that pass the filter."""
        names = sorted(self._mirror.names)
        beyond = names[bisect_right(names, after) :]
        passing = (name for name in beyond if self._passes(self._mirror.names[name], wanted))
        return [self.status(name) for name in islice(passing, limit)]

    def _passes(self, record: NameRecord, wanted: Filter) -> bool:
        return (
            record.name.startswith(wanted.prefix)
            and wanted.tag in {None, *record.tags}
            and wanted.state in {None, record.state}
            and wanted.resident in {None, self._is_resident(record)}
        )

    def _is_resident(self, record: NameRecord) -> bool:
        return record.digest is not None and self._residency.is_resident(record.digest)

    def serving(self) -> list[Registered]:
        """The names that serve."""
        records = self._mirror.names.values()
        return [self._registered(record) for record in records if record.state is State.READY]

    def get(self, name: str) -> Registered:
        """A name that serves; AdapterNotFound if there is no such name, or it does not serve."""
        return self._registered(self._mirror.get_ready(name))

    def _registered(self, record: NameRecord) -> Registered:
        facts = self._mirror.facts(record.digest)
        assert facts is not None, "a name that serves has a revision"
        return registered_of(
            record,
            facts,
            nbytes=self._residency.device_bytes(facts.digest) or facts.nbytes,
            resident=self._residency.is_resident(facts.digest),
        )
