"""What the server tells Prometheus. Metric names exist here and in ``manylora.server.metrics.families`` only.

Counters, and the sum and count of each latency, are kept per adapter; the full distributions are kept
once for the whole server. With a thousand adapters registered a scrape therefore stays at some ten
thousand lines, where a histogram per adapter would take it past fifty thousand.

The label ``adapter`` takes the names given to :meth:`Metrics.adapter_used` and three of our own:
``(base)``, ``(mix)`` (several adapters in one request) and ``(other)`` (a name that is not, or no longer,
registered). Nothing a client sends can make a new series.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from threading import Lock

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

from manylora.server.metrics.arm_families import ArmCounts, arm_families
from manylora.server.metrics.families import (
    LOADED_FROM,
    OTHER,
    OUTCOMES,
    OWN_LABELS,
    REJECTIONS,
    TIERS,
    AdapterFamilies,
    RequestFamilies,
    Series,
    StepFamilies,
    Traffic,
)


class Metrics:
    """The server's counters. Every method takes a few microseconds at most and is safe from any thread."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """``registry`` must be empty of our names; by default a new one, so instances never collide."""
        self.registry = CollectorRegistry() if registry is None else registry
        self._steps = StepFamilies(self.registry)
        self._requests = RequestFamilies(self.registry)
        self._adapters = AdapterFamilies(self.registry)
        self._hits = {tier: self._adapters.hits.labels(tier) for tier in TIERS}
        self._loads = {tier: self._adapters.load.labels(tier) for tier in LOADED_FROM}
        self._rejected = {reason: self._requests.rejected.labels(reason) for reason in REJECTIONS}
        self._lock = Lock()
        self._series = {label: Series(self._requests, label) for label in OWN_LABELS}
        self._arms: Callable[[], ArmCounts] = dict
        self._describe_build()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _describe_build(self) -> None:
        labels = {"version": _version("manylora"), "torch": _version("torch")}
        labels["python"] = platform.python_version()
        info = Gauge("manylora_build_info", "Always 1.", tuple(labels), registry=self.registry)
        info.labels(**labels).set(1)

    def _of(self, label: str) -> Series:
        found = self._series.get(label)
        return self._series[OTHER] if found is None else found

    def step(
        self,
        *,
        running: int,
        waiting: int,
        batch_tokens: int,
        batch_sequences: int,
        distinct_adapters: int,
        kv_used: int,
        kv_total: int,
        seconds: float,
    ) -> None:
        """One engine step has run. ``running`` to ``kv_total`` are as the step leaves them; KV in blocks."""
        steps = self._steps
        steps.running.set(running)
        steps.waiting.set(waiting)
        steps.kv_used.set(kv_used)
        steps.kv_total.set(kv_total)
        if batch_sequences:
            steps.tokens.observe(batch_tokens)
            steps.sequences.observe(batch_sequences)
            steps.adapters.observe(distinct_adapters)
            steps.seconds.observe(seconds)

    def started(self, label: str, queue_seconds: float) -> None:
        """A request enters its first step after ``queue_seconds`` of waiting."""
        self._requests.queue.observe(queue_seconds)
        self._of(label).queue.observe(queue_seconds)

    def prefix(self, queried_tokens: int, hit_tokens: int) -> None:
        """A prompt was looked up in the prefix cache."""
        self._requests.prefix_queried.inc(queried_tokens)
        self._requests.prefix_hit.inc(hit_tokens)

    def preempted(self, count: int = 1) -> None:
        """``count`` sequences gave up their blocks and wait again."""
        self._requests.preempted.inc(count)

    def prompt_tokens(self, label: str, count: int) -> None:
        """A prompt of ``count`` tokens was admitted."""
        self._of(label).prompt.inc(count)

    def generated(self, label: str, count: int) -> None:
        """``count`` tokens were sampled."""
        self._of(label).generated.inc(count)

    def first_token(self, label: str, seconds: float) -> None:
        """The first token came ``seconds`` after arrival."""
        self._requests.first_token.observe(seconds)
        self._of(label).first_token.observe(seconds)

    def inter_token(self, label: str, seconds: float) -> None:
        """A further token came ``seconds`` after the one before it."""
        self._steps.inter_token.observe(seconds)
        self._of(label).inter_token.observe(seconds)

    def finished(self, label: str, outcome: str, seconds: float) -> None:
        """An admitted request ended, ``seconds`` after arrival. ``outcome`` is one of :data:`OUTCOMES`."""
        series = self._of(label)
        series.outcome[outcome].inc()
        self._requests.request.observe(seconds)
        series.request.observe(seconds)

    def rejected(self, outcome: str) -> None:
        """A request was refused before admission; what is not in :data:`REJECTIONS` counts as ``other``."""
        self._rejected.get(outcome, self._rejected["other"]).inc()

    def aborted(self, label: str) -> None:
        """The client of an admitted request went away."""
        self._of(label).aborted.inc()

    def token_after_abort(self, count: int) -> None:
        """``count`` tokens were computed for requests already aborted: a fault in the engine."""
        self._requests.after_abort.inc(count)

    def adapter_used(self, name: str) -> None:
        """A request runs with the registered adapter ``name``. Makes ``name`` a label value."""
        if name not in self._series:
            with self._lock:
                if name not in self._series:
                    self._series[name] = Series(self._requests, name)

    def traffic(self, name: str) -> Traffic:
        """What requests for adapter ``name`` alone came to since this server started."""
        series = self._series.get(name)
        return Traffic() if series is None else series.traffic()

    def scored(self, label: str, score: float, previous: float | None) -> None:
        """A user has scored an answer, for the first time or instead of the ``previous`` score."""
        series = self._of(label)
        if previous is None:
            series.scores.inc()
        series.points.inc(score - (0.0 if previous is None else previous))

    def show_arms(self, counted: Callable[[], ArmCounts]) -> None:
        """Show what ``counted``, called from any thread whenever metrics are asked for, says of arms."""
        self._arms = counted

    def adapter_read(self, tier: str, seconds: float) -> None:
        """An adapter was brought in from ``tier``, one of :data:`LOADED_FROM`, in ``seconds``."""
        self._loads[tier].observe(seconds)

    def adapter_hit(self, tier: str, count: int = 1) -> None:
        """Requests needed ``count`` adapters that were found in ``tier``, one of :data:`TIERS`."""
        self._hits[tier].inc(count)

    def adapter_evicted(self) -> None:
        """An idle adapter was taken off the device to make room."""
        self._adapters.evicted.inc()

    def adapters_registered(self, count: int) -> None:
        """So many adapters can be named by requests."""
        self._adapters.registered.set(count)

    def adapters_resident(self, count: int, nbytes: int, host_bytes: int = 0) -> None:
        """So many adapters are on the device, taking ``nbytes``; cached ones take ``host_bytes``."""
        self._adapters.resident.set(count)
        self._adapters.nbytes.set(nbytes)
        self._adapters.host_bytes.set(host_bytes)

    def merged_copies(self, count: int, nbytes: int) -> None:
        """There are so many merged copies, taking ``nbytes``."""
        self._adapters.merged.set(count)
        self._adapters.merged_bytes.set(nbytes)

    def auto_merged(self) -> None:
        """A copy was merged that nobody asked for."""
        self._adapters.auto_merged.inc()

    def forget(self, name: str) -> None:
        """Drop every series of adapter ``name``; what still ends under it counts as ``other``."""
        if name in OWN_LABELS:
            return
        with self._lock:
            if self._series.pop(name, None) is None:
                return
            for family in self._requests.by_adapter:
                family.remove(name)
            for outcome in OUTCOMES:
                self._requests.finished.remove(name, outcome)

    def exposition(self) -> tuple[bytes, str]:
        """The body of ``GET /metrics`` and its content type."""
        return generate_latest(_Shown(self.registry, self._arms())), CONTENT_TYPE_LATEST

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
        ours = (family for family in _Shown(self.registry, example).collect() if _is_ours(family))
        return sorted(ours, key=lambda family: family.name)


class _Shown(Collector):
    """The arms, and the registry less its ``_created`` series, which nearly double the size of a scrape."""

    def __init__(self, registry: CollectorRegistry, arms: ArmCounts) -> None:
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
