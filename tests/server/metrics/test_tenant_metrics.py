"""Metrics of tenants: bounded labels, and series that never get smaller."""

from __future__ import annotations

import random
from collections import Counter

from prometheus_client import CollectorRegistry

from manylora.server.metrics.tenant_metrics import TenantMetrics


def requests(registry: CollectorRegistry) -> dict[str, float]:
    (family,) = [each for each in registry.collect() if each.name == "manylora_tenant_requests"]
    return {s.labels["tenant"]: s.value for s in family.samples if s.name.endswith("_total")}


def test_labels_are_bounded_and_of_those_who_take_most() -> None:
    registry, dice = CollectorRegistry(), random.Random(1)
    metrics = TenantMetrics(registry, shown=3)
    sent, before = Counter[str](), dict[str, float]()
    names = [f"t{n}" for n in range(10)]
    for _ in range(2000):
        name = dice.choices(names, weights=[2**n for n in range(10)])[0]
        sent[name] += 1
        metrics.ended(name, prompt=3, cached=1, completion=2)
        now = requests(registry)
        assert len(now) <= 4
        assert all(now[each] >= before[each] for each in now.keys() & before.keys())
        before = now
    assert set(requests(registry)) == {"t9", "t8", "t7", "(other)"}
    assert requests(registry)["t9"] <= sent["t9"]
    metrics.limited("t0")
    assert registry.get_sample_value("manylora_tenant_limited_total", {"tenant": "(other)"}) == 1
    tokens = {"tenant": "t9", "kind": "cached"}
    assert registry.get_sample_value("manylora_tenant_tokens_total", tokens) == requests(registry)["t9"]
