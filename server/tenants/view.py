"""The names of the registry as one tenant sees them.

What a tenant calls ``support`` is its own ``acme/support`` in the registry, or, if it has none, what somebody
shares with it under that name. So two tenants may both have a ``support``, and whatever a tenant can't see it
finds missing in its own names, whether or not it is there for somebody else.
"""

from __future__ import annotations

from collections.abc import Callable

from manylora.adapters.registry.records import NameRecord
from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.server.names.registry_mirror import RegistryMirror

EVERY_TENANT = "*"  # with whom an adapter is shared


class TenantView:
    """What one tenant may use, at this moment. Event loop."""

    def __init__(
        self, tenant: TenantRecord, mirror: RegistryMirror, base: str, is_tenant: Callable[[str], bool]
    ) -> None:
        """``base`` is the base model's name; ``is_tenant(name)`` says whether somebody is called so."""
        self.tenant = tenant
        self._mirror = mirror
        self._base = base
        self._is_tenant = is_tenant

    def meaning(self, name: str) -> str:
        """The registry's name for what the tenant calls ``name``: its own first, then what it may use."""
        own = self.tenant.namespace + name
        if name == self._base or (not self._is_known(own) and self.visible(name)):
            return name
        return own

    def shown(self, name: str) -> str:
        """What the tenant calls the registry's ``name``: without its own namespace."""
        short = self.short(name)
        return short if short and self.meaning(short) == name else name

    def short(self, name: str) -> str:
        """What the tenant calls one of its own, whether or not it is there."""
        return name.removeprefix(self.tenant.namespace)

    def owns(self, name: str) -> bool:
        """Whether the registry's ``name`` is one of the tenant's own."""
        return name.startswith(self.tenant.namespace)

    def own(self, name: str) -> str:
        """The registry's name for what the tenant calls ``name``, if it is its own."""
        return name if self.owns(name) else self.tenant.namespace + name

    def visible(self, name: str | None) -> bool:
        """Whether the tenant may use the registry's ``name``; None: the base model."""
        if name is None:
            return self.tenant.settings.base
        return self.owns(name) or self.from_sources(name) or self._is_shared(self._mirror.names.get(name))

    @property
    def answers_base(self) -> bool:
        """Whether the tenant may name the base model: for itself, or for what stands for it."""
        return self.visible(None) or self.tenant.settings.default_adapter is not None

    def from_sources(self, name: str) -> bool:
        """Whether the operator has named it for this tenant, so that it is fetched if need be."""
        first, slash, _ = name.partition("/")
        others = f"{first}/" if slash and first != self.tenant.name and self._is_tenant(first) else ""
        return self.tenant.lists(name, others)

    def _is_known(self, name: str) -> bool:
        return name in self._mirror.names or name in self._mirror.aliases

    def _is_shared(self, record: NameRecord | None) -> bool:
        return record is not None and (self.tenant.name in record.shared or EVERY_TENANT in record.shared)
