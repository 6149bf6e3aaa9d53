"""The room that a tenant has for its own adapters, held while one is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock

from manylora.adapters.errors import OverQuota
from manylora.server.api.admin.publish_request import PublishRequest
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView


class Quotas:
    """Bytes of what is being published for each tenant, which the registry does not know of yet."""

    def __init__(self) -> None:
        self._coming: dict[str, int] = {}  # by the tenant's id
        self._lock = Lock()

    def within(self, service: Service, view: TenantView, wanted: PublishRequest) -> PublishRequest:
        """``wanted``, which raises OverQuota once its files are there if they are too much."""
        limit = view.tenant.settings.limits.adapter_bytes
        if limit is None:
            return wanted
        took = 0

        def fetch(into: Path) -> str | None:
            nonlocal took
            found = wanted.fetch(into)
            nbytes = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
            with self._lock:
                coming = self._coming.get(view.tenant.id, 0)
                used = service.adapters.registry.revisions.bytes_of(view.tenant.namespace) + coming
                if used + nbytes > limit:
                    raise OverQuota(
                        f"your adapters take {used} bytes of {limit}, and this one has {nbytes}: delete some"
                    )
                self._coming[view.tenant.id] = coming + nbytes
            took = nbytes
            return found

        def discard() -> None:
            nonlocal took
            with self._lock:
                self._coming[view.tenant.id] = self._coming.get(view.tenant.id, 0) - took
                took = 0
            wanted.discard()

        return replace(wanted, fetch=fetch, discard=discard)
