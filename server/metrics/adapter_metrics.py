"""Metrics of adapters: how many there are, where they are, and how they get there; merged copies too."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from manylora.server.metrics.asked_gauge import asked_gauge
from manylora.server.metrics.labels import LOADED_FROM, TIERS

_LOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class AdapterMetrics:
    """Registration and residency of adapters, and merged copies of the base."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return asked_gauge(registry, name, text)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"manylora_{name}_total", text, labels, registry=registry)

        self._registered = gauge("adapters_registered", "Adapters a request can name.")
        self._resident = gauge("adapters_resident", "Adapters whose pages are on the device.")
        self._resident_bytes = gauge("adapters_resident_bytes", "Device memory their pages take.")
        self._host_bytes = gauge("adapters_memory_bytes", "Host memory that cached adapters take.")
        self._evicted = counter("adapter_evictions", "Adapters taken off the device to make room for others.")
        self._merged = gauge("merged_copies", "Merged copies of the base, those being built included.")
        self._merged_bytes = gauge("merged_copies_bytes", "Memory they take.")
        self._auto_merged = counter(
            "auto_merges", "Copies that were merged because most answers were for one adapter."
        )
        hits = counter(
            "adapter_tier_hits", "Adapters that requests needed, by where they were found.", "tier"
        )
        load = Histogram(
            "manylora_adapter_load_seconds",
            "Reading, checking and packing one adapter, by where it came from; publish: from its source.",
            ("tier",),
            registry=registry,
            buckets=_LOAD_SECONDS,
        )
        self._found = {tier: hits.labels(tier) for tier in TIERS}
        self._loaded = {tier: load.labels(tier) for tier in LOADED_FROM}

    def ask(
        self,
        *,
        registered: Callable[[], int],
        resident: Callable[[], int],
        resident_bytes: Callable[[], int],
        host_bytes: Callable[[], int],
    ) -> None:
        """Where the gauges of adapters are read whenever metrics are asked for, in any thread."""
        self._registered.set_function(registered)
        self._resident.set_function(resident)
        self._resident_bytes.set_function(resident_bytes)
        self._host_bytes.set_function(host_bytes)

    def ask_merged(self, copies: Callable[[], int], nbytes: Callable[[], int]) -> None:
        """Where the gauges of merged copies are read whenever metrics are asked for, in any thread."""
        self._merged.set_function(copies)
        self._merged_bytes.set_function(nbytes)

    def found(self, tier: str) -> Counter:
        """What counts adapters that requests needed and that were found in ``tier``, one of :data:`TIERS`."""
        return self._found[tier]

    def loaded(self, tier: str, seconds: float) -> None:
        """An adapter was brought in from ``tier``, one of :data:`LOADED_FROM`, in ``seconds``."""
        self._loaded[tier].observe(seconds)

    def evicted(self) -> None:
        """An idle adapter was taken off the device to make room."""
        self._evicted.inc()

    def auto_merged(self) -> None:
        """A copy was merged that nobody asked for."""
        self._auto_merged.inc()
