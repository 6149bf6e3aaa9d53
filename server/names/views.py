"""What is told of names: the facts of the registry beside what this server knows of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import islice

from manylora.adapters.registry.records import NameRecord, State
from manylora.server.metrics.metrics import Metrics
from manylora.server.names.registry_mirror import Catalogue
from manylora.server.names.status import (
    AdapterStatus,
    Filter,
    Registered,
    Residency,
    registered_of,
    status_of,
)
from manylora.server.residency.references import Holdings


class Overview:
    """Answers from memory, on the event loop."""

    def __init__(
        self, catalogue: Catalogue, holdings: Holdings, metrics: Metrics, used: Mapping[str, float]
    ) -> None:
        """``used`` is when this server last used a name, in unix seconds."""
        self._catalogue = catalogue
        self._holdings = holdings
        self._metrics = metrics
        self._used = used

    def status(self, name: str) -> AdapterStatus:
        """Everything about a name; AdapterNotFound if there is no such name."""
        record = self._catalogue.get(name)
        facts = self._catalogue.facts(record.digest)
        lost = record.state is State.FAILED  # a name that has a revision fails for want of its files
        stored = 0 if facts is None or lost else facts.nbytes
        return status_of(
            record,
            facts,
            residency=Residency(0, 0, 0) if facts is None else self._holdings.residency(facts.digest, stored),
            references=self._holdings.references(record.history),
            traffic=self._metrics.traffic(name),
            last_used=self._used.get(name),
        )

    def page(self, wanted: Filter, *, after: str, limit: int) -> list[AdapterStatus]:
        """The first ``limit`` names beyond ``after``, sorted, that pass the filter."""
        names = sorted(self._catalogue.names)
        beyond = names[bisect_right(names, after) :]
        passing = (name for name in beyond if self._passes(self._catalogue.names[name], wanted))
        return [self.status(name) for name in islice(passing, limit)]

    def _passes(self, record: NameRecord, wanted: Filter) -> bool:
        return (
            record.name.startswith(wanted.prefix)
            and wanted.tag in {None, *record.tags}
            and wanted.state in {None, record.state}
            and wanted.resident in {None, self._is_resident(record)}
        )

    def _is_resident(self, record: NameRecord) -> bool:
        return record.digest is not None and self._holdings.is_resident(record.digest)

    def serving(self) -> list[Registered]:
        """The names that serve."""
        records = self._catalogue.names.values()
        return [self._registered(record) for record in records if record.state is State.READY]

    def get(self, name: str) -> Registered:
        """A name that serves; AdapterNotFound if there is no such name, or it does not serve."""
        return self._registered(self._catalogue.get_ready(name))

    def _registered(self, record: NameRecord) -> Registered:
        facts = self._catalogue.facts(record.digest)
        assert facts is not None, "a name that serves has a revision"
        return registered_of(
            record,
            facts,
            nbytes=self._holdings.device_bytes(facts.digest) or facts.nbytes,
            resident=self._holdings.is_resident(facts.digest),
        )
