"""What the server tells Prometheus. The one place where metric names exist.

Counters, and the sum and count of each latency, are kept per adapter; the full distributions are kept
once for the whole server. With a thousand adapters registered a scrape therefore stays at some ten
thousand lines, where a histogram per adapter would take it past fifty thousand.

The label ``adapter`` takes the names given to :meth:`Metrics.adapter_loaded` and three of our own:
``(base)``, ``(mix)`` (several adapters in one request) and ``(other)`` (a name that is not, or no longer,
registered). Nothing a client sends can make a new series.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from threading import Lock

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    Summary,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BASE, MIX, OTHER = OWN_LABELS = ("(base)", "(mix)", "(other)")  # no adapter can have such a name
OUTCOMES = ("stop", "length", "abort", "error")
REJECTIONS = (
    "invalid",
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "unprocessable",
    "queue_full",
    "unavailable",
    "internal",
    "other",
)

# From a step of a small model (1 ms on a GPU, 10 ms on a CPU) to one of a big model on a busy machine.
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_WAIT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DISTINCT = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class _StepFamilies:
    """What one engine step says of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"manylora_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"manylora_{name}", text, registry=registry, buckets=buckets)

        self.running = gauge("requests_running", "Sequences admitted to the batch after the last step.")
        self.waiting = gauge("requests_waiting", "Sequences waiting for admission after the last step.")
        self.kv_used = gauge("kv_cache_used_blocks", "KV cache blocks held by sequences.")
        self.kv_total = gauge("kv_cache_blocks", "KV cache blocks in total (16 tokens each).")
        self.seconds = histogram("step_seconds", "Duration of one engine step.", _STEP_SECONDS)
        self.tokens = histogram("step_tokens", "Tokens computed in one step (prompt and decode).", _TOKENS)
        self.sequences = histogram("step_sequences", "Sequences in the batch of one step.", _SEQUENCES)
        self.adapters = histogram("step_adapters", "Distinct adapters in the batch of one step.", _DISTINCT)
        self.inter_token = histogram(
            "inter_token_seconds", "Time between two tokens of a sequence.", _STEP_SECONDS
        )


class _RequestFamilies:
    """What happens to requests, in total and by adapter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"manylora_{name}_total", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"manylora_{name}_seconds", text, registry=registry, buckets=buckets)

        def summary(name: str, text: str) -> Summary:
            return Summary(f"manylora_adapter_{name}_seconds", text, ("adapter",), registry=registry)

        self.queue = histogram("queue", "Time from arrival to the first step.", _WAIT_SECONDS)
        self.first_token = histogram("time_to_first_token", "Arrival to first token.", _WAIT_SECONDS)
        self.request = histogram("request", "Arrival to last token.", _REQUEST_SECONDS)
        self.rejected = counter("requests_rejected", "Requests refused before admission.", "reason")
        self.prefix_queried = counter("prefix_cache_queried_tokens", "Prompt tokens looked up.")
        self.prefix_hit = counter("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.")
        self.preempted = counter("preemptions", "Sequences set back to waiting for want of KV blocks.")
        self.after_abort = counter("tokens_after_abort", "Tokens computed for aborted requests; stays 0.")

        self.finished = counter("requests", "Requests ended, by outcome.", "adapter", "outcome")
        self.prompt = counter("prompt_tokens", "Prompt tokens of admitted requests.", "adapter")
        self.generated = counter("generated_tokens", "Tokens generated.", "adapter")
        self.aborted = counter("aborts", "Requests whose client went away or cancelled.", "adapter")
        self.queue_by = summary("queue", "Time from arrival to the first step, by adapter.")
        self.first_token_by = summary("time_to_first_token", "Arrival to first token, by adapter.")
        self.inter_token_by = summary("inter_token", "Time between two tokens, by adapter.")
        self.request_by = summary("request", "Arrival to last token, by adapter.")

    @property
    def by_adapter(self) -> tuple[Counter | Summary, ...]:
        """The families whose only label is ``adapter``."""
        counters = (self.prompt, self.generated, self.aborted)
        return (*counters, self.queue_by, self.first_token_by, self.inter_token_by, self.request_by)


class _Series:
    """The series of one adapter, looked up once so that hot calls need no lookup by label."""

    def __init__(self, families: _RequestFamilies, label: str) -> None:
        self.outcome = {outcome: families.finished.labels(label, outcome) for outcome in OUTCOMES}
        self.prompt = families.prompt.labels(label)
        self.generated = families.generated.labels(label)
        self.aborted = families.aborted.labels(label)
        self.queue = families.queue_by.labels(label)
        self.first_token = families.first_token_by.labels(label)
        self.inter_token = families.inter_token_by.labels(label)
        self.request = families.request_by.labels(label)


class _AdapterFamilies:
    """Registration and residency."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"manylora_{name}", text, registry=registry)

        self.registered = gauge("adapters_registered", "Adapters a request can name.")
        self.resident = gauge("adapters_resident", "Adapters whose pages are on the device.")
        self.nbytes = gauge("adapters_resident_bytes", "Device memory their pages take.")
        self.load = Histogram(
            "manylora_adapter_load_seconds",
            "Reading, checking and loading one adapter.",
            registry=registry,
            buckets=_LOAD_SECONDS,
        )


class Metrics:
    """The server's counters. Every method takes a few microseconds at most and is safe from any thread."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """``registry`` must be empty of our names; by default a new one, so instances never collide."""
        self.registry = CollectorRegistry() if registry is None else registry
        self._steps = _StepFamilies(self.registry)
        self._requests = _RequestFamilies(self.registry)
        self._adapters = _AdapterFamilies(self.registry)
        self._rejected = {reason: self._requests.rejected.labels(reason) for reason in REJECTIONS}
        self._lock = Lock()
        self._series = {label: _Series(self._requests, label) for label in OWN_LABELS}
        self._describe_build()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _describe_build(self) -> None:
        labels = {"version": _version("manylora"), "torch": _version("torch")}
        labels["python"] = platform.python_version()
        info = Gauge("manylora_build_info", "Always 1.", tuple(labels), registry=self.registry)
        info.labels(**labels).set(1)

    def _of(self, label: str) -> _Series:
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

    def adapter_loaded(self, name: str, seconds: float) -> None:
        """The registered adapter ``name`` was loaded in ``seconds``. Makes ``name`` a label value."""
        self._adapters.load.observe(seconds)
        with self._lock:
            if name not in self._series:
                self._series[name] = _Series(self._requests, name)

    def adapters_registered(self, count: int) -> None:
        """So many adapters can be named by requests."""
        self._adapters.registered.set(count)

    def adapters_resident(self, count: int, nbytes: int) -> None:
        """So many adapters are on the device, taking ``nbytes``."""
        self._adapters.resident.set(count)
        self._adapters.nbytes.set(nbytes)

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
        return generate_latest(_WithoutCreated(self.registry)), CONTENT_TYPE_LATEST

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
        ours = (family for family in _WithoutCreated(self.registry).collect() if _is_ours(family))
        return sorted(ours, key=lambda family: family.name)


class _WithoutCreated(Collector):
    """The registry less its ``_created`` series, which nearly double the size of a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _is_ours(family: Metric) -> bool:
    return family.name.startswith("manylora_")


def _label_names(family: Metric) -> list[str]:
    return sorted({label for sample in family.samples for label in sample.labels} - {"le"})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
