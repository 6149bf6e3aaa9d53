"""Metrics of several replicas in one text that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from manylora.server.cluster.exposition import merge_expositions
from manylora.server.metrics.metrics import Metrics


def exposition(value: float, extra: bool = False) -> str:
    registry = CollectorRegistry()
    Gauge("running", 'Runs, "now".\nHere.', registry=registry).set(value)
    counter = Counter("asked", "Asked.", ["model", "status"], registry=registry)
    counter.labels('a"b\\c}, {x="1"', "200").inc(value)
    Histogram("took_seconds", "Took.", ["route"], registry=registry, buckets=(1, 2)).labels(
        "/v1/x y"
    ).observe(value)
    if extra:
        Gauge("only", "Only one has it.", registry=registry).set(value)
    return generate_latest(registry).decode()


def test_every_sample_is_there_once_with_its_replica() -> None:
    texts = {"one": exposition(1.0), 'two"\\': exposition(2.5, extra=True)}
    families = list(text_string_to_metric_families(merge_expositions(texts)))
    assert len({family.name for family in families}) == len(families)  # none is torn apart
    found = {
        (sample.name, *sorted((k, v) for k, v in sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    expected = {
        (sample.name, *sorted([*sample.labels.items(), ("replica", replica)])): sample.value
        for replica, text in texts.items()
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == expected


def test_families_keep_type_and_help() -> None:
    merged = merge_expositions({"one": exposition(1), "two": exposition(2)})
    for head in ("# TYPE running gauge", "# TYPE asked_total counter", "# TYPE took_seconds histogram"):
        assert merged.count(head + "\n") == 1
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    assert families["running"].documentation == 'Runs, "now".\nHere.'


def test_the_servers_own_metrics_merge() -> None:
    text = Metrics().exposition()[0].decode()
    merged = merge_expositions({"a": text, "b": text})
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    own = {family.name: family for family in text_string_to_metric_families(text)}
    assert families.keys() == own.keys()
    for name, family in families.items():
        assert len(family.samples) == 2 * len(own[name].samples)


def test_nothing_of_nobody() -> None:
    assert merge_expositions({}) == ""
