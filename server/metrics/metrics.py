"""What the server tells Prometheus: the metrics of steps, requests and adapters, and their exposition.

To add a metric, define it in the object of its subject and give that a method that records it:
:class:`StepMetrics`, :class:`RequestMetrics`, :class:`AdapterMetrics` or :class:`TenantMetrics`. Metric names
exist there and nowhere else. ``docs/metrics.md`` lists them; a test says when it is out of date.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    GCCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from manylora.server.metrics.adapter_metrics import AdapterMetrics
from manylora.server.metrics.arm_families import ArmCounts, arm_families
from manylora.server.metrics.request_metrics import RequestMetrics
from manylora.server.metrics.step_metrics import StepMetrics
from manylora.server.metrics.tenant_metrics import TenantMetrics


class Metrics:
    """The server's metrics, by subject. Recording takes microseconds and is safe from any thread."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """``registry`` must be empty of our names; by default a new one, so instances never collide."""
        self.registry = CollectorRegistry() if registry is None else registry
        self.steps = StepMetrics(self.registry)
        self.requests = RequestMetrics(self.registry)
        self.adapters = AdapterMetrics(self.registry)
        self.tenants = TenantMetrics(self.registry)
        self._arm_counts: Callable[[], ArmCounts] = dict
        self._server_wide = self._names_without_labels()
        self._describe_build()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _describe_build(self) -> None:
        labels = {"version": _version("manylora"), "torch": _version("torch")}
        labels["python"] = platform.python_version()
        info = Gauge("manylora_build_info", "Always 1.", tuple(labels), registry=self.registry)
        info.labels(**labels).set(1)

    def _names_without_labels(self) -> list[str]:
        """The names of our series by whose labels nothing is told apart; comes before any is by adapter."""
        found = (family for family in self.registry.collect() if _is_ours(family))
        return [
            sample.name
            for family in found
            if not {"adapter", "tenant"} & set(_label_names(family))
            for sample in family.samples
        ]

    def show_arms(self, counts: Callable[[], ArmCounts]) -> None:
        """Show what ``counts``, called from any thread whenever metrics are asked for, says of arms."""
        self._arm_counts = counts

    def exposition(self) -> tuple[bytes, str]:
        """The body of ``GET /metrics`` and its content type."""
        return generate_latest(_ShownMetrics(self.registry, self._arm_counts())), CONTENT_TYPE_LATEST

    def server_wide(self) -> bytes:
        """What has neither names of adapters, aliases or tenants in it, nor grows with their number."""
        return generate_latest(_ShownMetrics(self.registry.restricted_registry(self._server_wide), {}))

    def reference(self) -> str:
        """A Markdown table of every metric of ours, for ``docs/metrics.md``."""
        rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
        for family in self._families():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in _label_names(family)) or "-"
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
        return "\n".join(rows) + "\n"

    def names(self) -> frozenset[str]:
        """Every series name of ours that a query can use, ``_bucket``, ``_sum`` and ``_count`` included."""
        return frozenset(sample.name for family in self._families() for sample in family.samples)

    def _families(self) -> list[Metric]:
        example = {("ALIAS", "ARM"): {"requests": 1.0}}  # so that there are labels to list
        ours = (family for family in _ShownMetrics(self.registry, example).collect() if _is_ours(family))
        return sorted(ours, key=lambda family: family.name)


class _ShownMetrics(Collector):
    """The arms, and the registry less its ``_created`` series, which nearly double the size of a scrape."""

    def __init__(self, registry: Collector, arms: ArmCounts) -> None:
        self._registry = registry
        self._arms = arms

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
        yield from arm_families(self._arms)


def _is_ours(family: Metric) -> bool:
    return family.name.startswith("manylora_")


def _label_names(family: Metric) -> list[str]:
    return sorted({label for sample in family.samples for label in sample.labels} - {"le"})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
