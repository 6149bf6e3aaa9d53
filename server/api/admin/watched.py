"""What the audit log is told of adapters and aliases: what they were before a request, and after."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import Depends

from manylora.server.api.access.audited import AuditState
from manylora.server.api.admin.own_names import ManagedName
from manylora.server.api.http.state import ServiceState
from manylora.server.service import Service


def _facts(service: Service, name: str) -> dict[str, Any] | None:
    mirror = service.adapters.mirror
    record, alias = mirror.names.get(name), mirror.aliases.get(name)
    if alias is not None:
        return {"split": [list(arm) for arm in alias.arms]}
    if record is None:
        return None
    return {
        "state": record.state.value,
        "digest": record.digest,
        "tags": list(record.tags),
        "pinned": record.pinned,
        "shared_with": list(record.shared),
    }


async def _watch(service: ServiceState, audit: AuditState, name: ManagedName) -> AsyncIterator[None]:
    audit.target, audit.before = name, _facts(service, name)
    try:
        yield
    finally:
        audit.after = _facts(service, name)


WATCHED: Final = [Depends(_watch)]
"""Dependencies of a route that changes the adapter or alias in its path."""
