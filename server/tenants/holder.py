"""Who has a key: the tenant, and what the key is for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from manylora.adapters.registry.tenants.records import KeyRecord, KeyRight, TenantRecord


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """A tenant by one of its keys; without a key, a tenant that the server itself asks for."""

    tenant: TenantRecord
    key: KeyRecord | None = None

    @property
    def rights(self) -> Collection[KeyRight]:
        """What the tenant may do here."""
        return (KeyRight.INFER,) if self.key is None else self.key.scopes
