"""Metrics of tenants: who takes how much. So that labels are bounded, those who take little are one."""

from __future__ import annotations

from threading import Lock
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from manylora.server.metrics.labels import OTHER

MAX_SHOWN: Final = 50  # tenants with labels of their own: those that took most since the start
TOKENS: Final = ("prompt", "cached", "completion")


class TenantMetrics:
    """Requests and tokens by tenant. Thread-safe.

    A tenant that comes to have taken more than one that is shown takes its place: it is counted by itself
    from then on, from 0, and the other among the rest. So no series gets smaller but by beginning anew.
    """

    def __init__(self, registry: CollectorRegistry, shown: int = MAX_SHOWN) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"manylora_tenant_{name}_total", text, ("tenant", *labels), registry=registry)

        self._requests = counter("requests", "Requests of tenants that have ended.")
        self._tokens = counter("tokens", "Tokens of these; cached ones are among the prompts'.", "kind")
        self._limited = counter("limited", "Requests that were refused for their tenant's limits.")
        self._requests.labels(OTHER)
        self._limited.labels(OTHER)
        for kind in TOKENS:
            self._tokens.labels(OTHER, kind)
        self._most = shown
        self._taken: dict[str, int] = {}  # tokens by tenant, since the start
        self._shown: set[str] = set()
        self._lock = Lock()

    def ended(self, tenant: str, *, prompt: int, cached: int, completion: int) -> None:
        """A request of a tenant has ended, with so many tokens."""
        with self._lock:
            label = self._label(tenant, prompt + completion)
            self._requests.labels(label).inc()
            for kind, count in zip(TOKENS, (prompt, cached, completion), strict=True):
                self._tokens.labels(label, kind).inc(count)

    def limited(self, tenant: str) -> None:
        """A request of a tenant was refused."""
        with self._lock:
            self._limited.labels(self._label(tenant, 0)).inc()

    def _label(self, tenant: str, more: int) -> str:
        taken = self._taken[tenant] = self._taken.get(tenant, 0) + more
        if tenant in self._shown:
            return tenant
        if len(self._shown) >= self._most:
            least = min(self._shown, key=self._taken.__getitem__)
            if taken <= self._taken[least]:
                return OTHER
            self._hide(least)
        self._shown.add(tenant)
        return tenant

    def _hide(self, tenant: str) -> None:
        self._shown.discard(tenant)
        for metric, labels in (
            (self._requests, [(tenant,)]),
            (self._limited, [(tenant,)]),
            (self._tokens, [(tenant, kind) for kind in TOKENS]),
        ):
            for each in labels:
                metric.remove(*each)
