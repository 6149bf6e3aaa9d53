"""Which adapters are where, by name, as routers in front of the server are to know it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from manylora.adapters.registry.records import State
from manylora.server.adapter_manager import AdapterManager
from manylora.server.names.view import View, called

_USUAL_RANK = 16  # of adapters, as long as none has been seen


@dataclass(frozen=True, slots=True)
class Resident:
    """A name whose current revision is in memory."""

    name: str
    level: str  # "gpu": where the base is, also if that is a CPU; "cpu": in host memory
    pinned: bool
    rank: int


class Residents:
    """The names that serve and whose revisions are in memory. Event loop.

    Put together when something has changed since it was last asked for, so that asking often costs nothing.
    """

    def __init__(self, adapters: AdapterManager) -> None:
        self._adapters = adapters
        self._seen: tuple[int, int, int] | None = None
        self._found: tuple[Resident, ...] = ()

    @property
    def version(self) -> tuple[int, int, int]:
        """It is another one whenever :meth:`all` may be."""
        residency = self._adapters.residency
        return self._adapters.mirror.changes, residency.device.changes, residency.host.changes

    def all(self, view: View | None = None) -> tuple[Resident, ...]:
        """All of them that ``view`` shows, by name."""
        version = self.version
        if version != self._seen:
            self._found = tuple(sorted(self._look(view), key=lambda each: each.name))
            self._seen = version
        return self._found

    def waited_for(self, view: View | None = None) -> list[str]:
        """The names that open requests asked for and whose revisions are not there yet."""
        names, residency = self._adapters.mirror.names, self._adapters.residency
        waited = []
        for name in residency.references.requests.names():
            record = names.get(name)
            if record is not None and record.digest and not residency.is_resident(record.digest):
                waited.append(called(name, view))
        return sorted(waited)

    @property
    def room(self) -> int:
        """About how many adapters are there at once, taken to be as large as those that are."""
        device, base = self._adapters.residency.device, self._adapters.base
        if device.num_resident:
            size = device.resident_bytes / device.num_resident
        else:
            widths = sum(each.in_features + each.out_features for each in base.modules.values())
            size = widths * _USUAL_RANK * device.element_bytes
        return max(device.num_resident, int(device.capacity_bytes / max(1.0, size)))

    def _look(self, view: View | None) -> Iterator[Resident]:
        adapters = self._adapters
        for record in adapters.mirror.names.values():
            if record.state is not State.READY or record.digest is None:
                continue
            if view is not None and not view.visible(record.name):
                continue
            on_device = adapters.residency.is_resident(record.digest)
            if on_device or adapters.residency.host.bytes_of(record.digest):
                facts = adapters.mirror.facts(record.digest)
                level = "gpu" if on_device else "cpu"
                rank = 0 if facts is None else facts.rank
                yield Resident(called(record.name, view), level, record.pinned, rank)
