"""OpenAI's headers of what is left of limits, on the answers to a tenant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from manylora.adapters.registry.tenants.records import NO_LIMITS, TenantLimits, TenantRecord
from manylora.server.tenants.meter import Left, Meter
from manylora.server.tenants.meters import Meters

PREFIX: Final = "x-ratelimit"


class LimitHeaders:
    """What one answer tells: of each kind of limit, that of which least is left."""

    def __init__(self, meters: Meters, tenant: TenantRecord) -> None:
        """At first what the tenant has of all its limits."""
        self._meters = meters
        self._tenant = tenant
        self._told: list[tuple[Meter, TenantLimits]] = []
        self._add("", tenant.settings.limits)

    def use(self, adapters: Iterable[str]) -> None:
        """The request runs with these, and takes of the limits that the tenant has with each."""
        for name in adapters:
            self._add(name, self._tenant.limits_with(name))

    def __call__(self) -> Mapping[str, str]:
        """The headers, as things stand."""
        return headers_of(left for meter, limits in self._told for left in meter.left(limits))

    def _add(self, adapter: str, limits: TenantLimits) -> None:
        if limits != NO_LIMITS:
            self._told.append((self._meters.of(self._tenant.id, adapter), limits))


def headers_of(told: Iterable[Left]) -> Mapping[str, str]:
    """``x-ratelimit-remaining-tokens`` and so on, of each kind of limit that of which least is left."""
    least: dict[str, Left] = {}
    for left in told:
        if left.name not in least or left.remaining < least[left.name].remaining:
            least[left.name] = left
    headers: dict[str, str] = {}
    for name, left in least.items():
        headers[f"{PREFIX}-limit-{name}"] = str(left.limit)
        headers[f"{PREFIX}-remaining-{name}"] = str(left.remaining)
        headers[f"{PREFIX}-reset-{name}"] = f"{left.reset}s"
    return headers
