"""Metrics: what is counted, under which labels, and that the documentation lists all of it."""

from __future__ import annotations

import re
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from manylora.server.metrics.labels import BASE, OTHER, OUTCOMES, OWN_LABELS, REJECTIONS
from manylora.server.metrics.metrics import Metrics
from tests.support.paths import ROOT

DOCS = ROOT / "docs" / "metrics.md"


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every exposed series and its value, as a scraper would read them."""
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[(f"manylora_{name}", frozenset(labels.items()))]


def adapters_seen(metrics: Metrics) -> set[str]:
    return {v for _, labels in samples(metrics) for k, v in labels if k == "adapter"}


def exercise(metrics: Metrics, label: str) -> None:
    """Call everything that takes a label."""
    metrics.requests.started(label, 0.1)
    metrics.requests.prompt_tokens(label, 20)
    metrics.requests.first_token(label, 0.2)
    metrics.requests.generated_tokens(label, 3)
    metrics.requests.inter_token(label, 0.02)
    metrics.requests.aborted(label)
    for outcome in OUTCOMES:
        metrics.requests.finished(label, outcome, 1.5)


def test_requests_are_counted_by_adapter_and_in_total() -> None:
    metrics = Metrics()
    metrics.requests.add_adapter("support")
    metrics.adapters.loaded("disk", 0.3)
    exercise(metrics, "support")
    exercise(metrics, BASE)
    assert value(metrics, "requests_total", adapter="support", outcome="length") == 1
    assert value(metrics, "prompt_tokens_total", adapter="support") == 20
    assert value(metrics, "generated_tokens_total", adapter=BASE) == 3
    assert value(metrics, "aborts_total", adapter="support") == 1
    assert value(metrics, "adapter_time_to_first_token_seconds_sum", adapter="support") == 0.2
    assert value(metrics, "time_to_first_token_seconds_count") == 2
    assert value(metrics, "request_seconds_count") == 2 * len(OUTCOMES)
    assert value(metrics, "adapter_load_seconds_sum", tier="disk") == 0.3


def test_gauges_are_asked_for_and_a_step_fills_histograms() -> None:
    metrics = Metrics()
    running = 8
    metrics.steps.ask(running=lambda: running, waiting=lambda: 2, kv_used=lambda: 5, kv_total=lambda: 100)
    assert value(metrics, "requests_running") == 8
    for seconds, sequences in ((0.02, 8), (0.0, 0)):
        running = sequences
        metrics.steps.record(
            batch_tokens=sequences,
            batch_sequences=sequences,
            distinct_adapters=3 * (sequences > 0),
            seconds=seconds,
        )
    assert value(metrics, "requests_running") == 0
    assert value(metrics, "requests_waiting") == 2
    assert value(metrics, "kv_cache_used_blocks") == 5
    assert value(metrics, "kv_cache_blocks") == 100
    assert value(metrics, "step_seconds_count") == 1  # an empty step counts for nothing
    assert value(metrics, "step_sequences_bucket", le="8.0") == 1
    assert value(metrics, "step_adapters_sum") == 3


def test_the_other_counters() -> None:
    metrics = Metrics()
    metrics.requests.prefix_lookup(100, 64)
    metrics.requests.preempted()
    metrics.requests.preempted(2)
    metrics.requests.tokens_after_abort(0)
    metrics.adapters.ask(
        registered=lambda: 7, resident=lambda: 3, resident_bytes=lambda: 4096, host_bytes=lambda: 0
    )
    assert value(metrics, "prefix_cache_queried_tokens_total") == 100
    assert value(metrics, "prefix_cache_hit_tokens_total") == 64
    assert value(metrics, "preemptions_total") == 3
    assert value(metrics, "tokens_after_abort_total") == 0
    assert value(metrics, "adapters_registered") == 7
    assert value(metrics, "adapters_resident_bytes") == 4096


@pytest.mark.parametrize("reason", REJECTIONS)
def test_rejections_by_reason(reason: str) -> None:
    metrics = Metrics()
    metrics.requests.rejected(reason)
    assert value(metrics, "requests_rejected_total", reason=reason) == 1


def test_raw_input_never_becomes_a_label() -> None:
    metrics = Metrics()
    before = set(samples(metrics))
    for raw in ('x"} 1\nforged_total{a="', "../etc", "", "never-loaded"):
        exercise(metrics, raw)
        metrics.requests.rejected(raw)
    assert set(samples(metrics)) == before
    assert value(metrics, "aborts_total", adapter=OTHER) == 4
    assert value(metrics, "requests_rejected_total", reason="other") == 4


def test_an_unknown_outcome_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        Metrics().requests.finished("base", "gone", 1.0)


def test_forget_drops_every_series_of_the_adapter() -> None:
    metrics = Metrics()
    before = set(samples(metrics))
    for name in ("support", "legal"):
        metrics.requests.add_adapter(name)
        exercise(metrics, name)
    metrics.requests.forget_adapter("support")
    metrics.requests.forget_adapter("support")
    assert adapters_seen(metrics) == {*OWN_LABELS, "legal"}
    exercise(metrics, "support")  # a late event of a dropped adapter brings nothing back
    assert adapters_seen(metrics) == {*OWN_LABELS, "legal"}
    metrics.requests.forget_adapter("legal")
    assert set(samples(metrics)) == before


def test_a_reloaded_adapter_starts_at_zero() -> None:
    metrics = Metrics()
    metrics.requests.add_adapter("support")
    exercise(metrics, "support")
    metrics.requests.add_adapter("support")  # a further request keeps its counts
    assert value(metrics, "generated_tokens_total", adapter="support") == 3
    metrics.requests.forget_adapter("support")
    metrics.requests.add_adapter("support")
    assert value(metrics, "generated_tokens_total", adapter="support") == 0


@pytest.mark.parametrize("own", OWN_LABELS)
def test_our_own_labels_are_never_dropped(own: str) -> None:
    metrics = Metrics()
    exercise(metrics, own)
    metrics.requests.forget_adapter(own)
    assert value(metrics, "generated_tokens_total", adapter=own) == 3


def test_two_servers_in_one_process_do_not_share() -> None:
    one, two = Metrics(), Metrics()
    one.requests.preempted()
    assert value(two, "preemptions_total") == 0


def test_threads_lose_nothing() -> None:
    metrics = Metrics()

    def work(number: int) -> None:
        for _ in range(500):
            metrics.requests.add_adapter(f"a{number % 2}")
            metrics.requests.generated_tokens(f"a{number % 2}", 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "generated_tokens_total", adapter="a0") == 1000
    assert value(metrics, "generated_tokens_total", adapter="a1") == 1000


def test_exposition_has_process_series_and_no_created_ones() -> None:
    body, content_type = Metrics().exposition()
    assert content_type.startswith("text/plain")
    assert b"process_resident_memory_bytes" in body
    assert b"manylora_build_info{" in body
    assert b"_created" not in body


def test_names_say_their_unit_and_every_metric_is_documented() -> None:
    metrics = Metrics()
    for name in metrics.names():
        assert re.fullmatch(r"manylora_[a-z0-9_]+", name)
        assert "_ms" not in name
    documented = DOCS.read_text()
    assert metrics.reference() in documented, "docs/metrics.md is out of date; it says how to renew it"
    queried = set(re.findall(r"manylora_\w+", documented.split("<!-- end -->")[1]))
    assert queried <= metrics.names()
