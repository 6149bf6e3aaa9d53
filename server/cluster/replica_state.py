"""What a replica tells routers and operators of itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from manylora.adapters.errors import AdapterError
from manylora.adapters.mix import parse_mix
from manylora.server.cluster.asked import copy_key
from manylora.server.errors import ServerError
from manylora.server.merged.variants import VariantState
from manylora.server.service import Service

logger = logging.getLogger(__name__)


class ReplicaState:
    """Reads a service. Lives on its event loop."""

    def __init__(self, service: Service, replica: str, node: str) -> None:
        """``replica`` and ``node`` are what Ray calls the replica and its machine."""
        self._service = service
        self._replica = replica
        self._node = node

    def resident(self) -> dict[str, int]:
        """The adapters whose current revision is on the device, aliases of them, and merged copies: ranks."""
        mirror, device = self._service.adapters.mirror, self._service.adapters.residency.device
        found: dict[str, int] = {}
        for digest in device.resident_digests():
            for name in mirror.names_with(digest):
                record = mirror.names.get(name)
                facts = mirror.facts(digest)
                if record is not None and record.digest == digest and facts is not None:
                    found[name] = facts.rank
        for name, alias in mirror.aliases.items():
            members = [
                term.name for target, _ in alias.arms for term in (parse_mix(target) if target else ())
            ]
            if members and all(member in found for member in members):
                found[name] = max(found[member] for member in members)
        for copy in self._service.adapters.merged.list():
            if copy.state is not VariantState.FAILED:
                found[copy_key(parse_mix(copy.model))] = 0
        return found

    def routing_stats(self) -> dict[str, Any]:
        """What routers choose by: JSON."""
        return {
            "resident": self.resident(),
            "ongoing": self._service.engine.num_open,
            "capacity": self._service.limits.max_num_seqs,
        }

    def load(self) -> dict[str, float]:
        """What the number of replicas is chosen by: sequences, and adapters that wait for room."""
        device = self._service.adapters.residency.device
        return {
            "ongoing": float(self._service.engine.num_open),
            "capacity": float(self._service.limits.max_num_seqs),
            "adapters_waiting": float(device.num_waiting if device.lacks_room else 0),
        }

    def shown(self) -> dict[str, Any]:
        """The replica as operators see it: JSON."""
        core, device = self._service.core, self._service.adapters.residency.device
        resident = self.resident()
        return {
            "object": "replica",
            "id": self._replica,
            "node": self._node,
            "pid": os.getpid(),
            "ready": self._service.ready and self._service.engine.alive,
            "started": int(self._service.started),
            "sequences": self._service.engine.num_open,
            "max_num_seqs": self._service.limits.max_num_seqs,
            "kv_cache_used_blocks": core.blocks.num_used,
            "adapters_resident": sorted(name for name in resident if not name.startswith("merged:")),
            "adapters_resident_bytes": device.resident_bytes,
            "merged_copies": [copy.model for copy in self._service.adapters.merged.list()],
        }

    async def prefetch(self, names: Iterable[str]) -> None:
        """Bring adapters in that will be asked for here, if there is room beside what runs."""
        for name in names:
            record = self._service.adapters.mirror.names.get(name)
            if record is None or record.digest is None:
                continue
            try:
                await self._service.adapters.residency.prefetch(record.digest)
            except (AdapterError, ServerError) as error:  # it will be loaded, or not, when it is asked for
                logger.debug("%s is not prefetched: %s", name, error)
