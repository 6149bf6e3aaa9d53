"""Metrics of requests, in total and by adapter: tokens, latencies, ends, refusals and scores.

Counters, and the sum and count of each latency, are kept per adapter; the full distributions are kept
once for the whole server. With a thousand adapters registered a scrape therefore stays at some ten
thousand lines, where a histogram per adapter would take it past fifty thousand.

The label ``adapter`` takes the names given to :meth:`RequestMetrics.add_adapter` and three of our own:
``(base)``, ``(mix)`` (several adapters in one request) and ``(other)`` (a name that is not, or no longer,
registered). Nothing a client sends can make a new series.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from manylora.server.metrics.labels import OTHER, OUTCOMES, OWN_LABELS, REJECTIONS
from manylora.server.metrics.step_metrics import STEP_SECONDS

_WAIT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one adapter has served."""

    requests: int = 0  # ended, however
    prompt_tokens: int = 0
    generated_tokens: int = 0
    scores: int = 0  # answers that users have scored
    points: float = 0.0  # the sum of their scores


class _AdapterFamilies:
    """The metrics that have a series for each adapter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"manylora_{name}_total", text, ("adapter", *labels), registry=registry)

        def summary(name: str, text: str) -> Summary:
            return Summary(f"manylora_adapter_{name}_seconds", text, ("adapter",), registry=registry)

        self.finished = counter("requests", "Requests ended, by outcome.", "outcome")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generated_tokens = counter("generated_tokens", "Tokens generated.")
        self.aborted = counter("aborts", "Requests whose client went away or cancelled.")
        self.scores = counter("feedback", "Answers that users have scored.")
        self.points = Gauge("manylora_feedback_points", "Sum of scores.", ("adapter",), registry=registry)
        self.queue = summary("queue", "Time from arrival to the first step, by adapter.")
        self.first_token = summary("time_to_first_token", "Arrival to first token, by adapter.")
        self.inter_token = summary("inter_token", "Time between two tokens, by adapter.")
        self.request = summary("request", "Arrival to last token, by adapter.")

    def remove(self, label: str) -> None:
        """Drop every series of one adapter."""
        for outcome in OUTCOMES:
            self.finished.remove(label, outcome)
        for family in vars(self).values():
            if family is not self.finished:
                family.remove(label)


class _AdapterSeries:
    """The series of one adapter, looked up once so that hot calls need no lookup by label."""

    def __init__(self, families: _AdapterFamilies, label: str) -> None:
        self.finished = {outcome: families.finished.labels(label, outcome) for outcome in OUTCOMES}
        self.prompt_tokens = families.prompt_tokens.labels(label)
        self.generated_tokens = families.generated_tokens.labels(label)
        self.aborted = families.aborted.labels(label)
        self.scores = families.scores.labels(label)
        self.points = families.points.labels(label)
        self.queue = families.queue.labels(label)
        self.first_token = families.first_token.labels(label)
        self.inter_token = families.inter_token.labels(label)
        self.request = families.request.labels(label)

    def traffic(self) -> Traffic:
        """What the series have come to."""
        return Traffic(
            requests=int(sum(_value(counter) for counter in self.finished.values())),
            prompt_tokens=int(_value(self.prompt_tokens)),
            generated_tokens=int(_value(self.generated_tokens)),
            scores=int(_value(self.scores)),
            points=_value(self.points),
        )


class RequestMetrics:
    """What happens to requests, in total and by adapter."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"manylora_{name}_total", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"manylora_{name}_seconds", text, registry=registry, buckets=buckets)

        self._queue = histogram("queue", "Time from arrival to the first step.", _WAIT_SECONDS)
        self._first_token = histogram("time_to_first_token", "Arrival to first token.", _WAIT_SECONDS)
        self._inter_token = histogram("inter_token", "Time between two tokens of a sequence.", STEP_SECONDS)
        self._request = histogram("request", "Arrival to last token.", _REQUEST_SECONDS)
        self._prefix_queried = counter("prefix_cache_queried_tokens", "Prompt tokens looked up.")
        self._prefix_hit = counter("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.")
        self._preempted = counter("preemptions", "Sequences set back to waiting for want of KV blocks.")
        self._after_abort = counter("tokens_after_abort", "Tokens computed for aborted requests; stays 0.")
        rejected = counter("requests_rejected", "Requests refused before admission.", "reason")
        self._rejected = {reason: rejected.labels(reason) for reason in REJECTIONS}
        self._families = _AdapterFamilies(registry)
        self._series = {label: _AdapterSeries(self._families, label) for label in OWN_LABELS}
        self._lock = Lock()  # over adding and removing series

    def _of(self, label: str) -> _AdapterSeries:
        found = self._series.get(label)
        return self._series[OTHER] if found is None else found

    def add_adapter(self, name: str) -> None:
        """A request runs with the registered adapter ``name``. Makes ``name`` a label value."""
        if name not in self._series:
            with self._lock:
                if name not in self._series:
                    self._series[name] = _AdapterSeries(self._families, name)

    def forget_adapter(self, name: str) -> None:
        """Drop every series of adapter ``name``; what still ends under it counts as ``other``."""
        if name in OWN_LABELS:
            return
        with self._lock:
            if self._series.pop(name, None) is not None:
                self._families.remove(name)

    def traffic(self, name: str) -> Traffic:
        """What requests for adapter ``name`` alone came to since this server started."""
        series = self._series.get(name)
        return Traffic() if series is None else series.traffic()

    def started(self, label: str, queue_seconds: float) -> None:
        """A request enters its first step after ``queue_seconds`` of waiting."""
        self._queue.observe(queue_seconds)
        self._of(label).queue.observe(queue_seconds)

    def prefix_lookup(self, queried_tokens: int, hit_tokens: int) -> None:
        """A prompt was looked up in the prefix cache."""
        self._prefix_queried.inc(queried_tokens)
        self._prefix_hit.inc(hit_tokens)

    @property
    def prefix_queried_tokens(self) -> int:
        """Prompt tokens that were looked up in the prefix cache so far."""
        return int(_value(self._prefix_queried))

    @property
    def prefix_hit_tokens(self) -> int:
        """Those that were found there."""
        return int(_value(self._prefix_hit))

    @property
    def preemptions(self) -> int:
        """Sequences that were set back to waiting so far."""
        return int(_value(self._preempted))

    def preempted(self, count: int = 1) -> None:
        """``count`` sequences gave up their blocks and wait again."""
        self._preempted.inc(count)

    def prompt_tokens(self, label: str, count: int) -> None:
        """A prompt of ``count`` tokens was admitted."""
        self._of(label).prompt_tokens.inc(count)

    def generated_tokens(self, label: str, count: int) -> None:
        """``count`` tokens were sampled."""
        self._of(label).generated_tokens.inc(count)

    def first_token(self, label: str, seconds: float) -> None:
        """The first token came ``seconds`` after arrival."""
        self._first_token.observe(seconds)
        self._of(label).first_token.observe(seconds)

    def inter_token(self, label: str, seconds: float) -> None:
        """A further token came ``seconds`` after the one before it."""
        self._inter_token.observe(seconds)
        self._of(label).inter_token.observe(seconds)

    def finished(self, label: str, outcome: str, seconds: float) -> None:
        """An admitted request ended, ``seconds`` after arrival. ``outcome`` is one of :data:`OUTCOMES`."""
        series = self._of(label)
        series.finished[outcome].inc()
        self._request.observe(seconds)
        series.request.observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request was refused before admission; what is not in :data:`REJECTIONS` counts as ``other``."""
        self._rejected.get(reason, self._rejected["other"]).inc()

    def aborted(self, label: str) -> None:
        """The client of an admitted request went away."""
        self._of(label).aborted.inc()

    def tokens_after_abort(self, count: int) -> None:
        """``count`` tokens were computed for requests already aborted: a fault in the engine."""
        self._after_abort.inc(count)

    def scored(self, label: str, score: float, previous: float | None) -> None:
        """A user has scored an answer, for the first time or instead of the ``previous`` score."""
        series = self._of(label)
        if previous is None:
            series.scores.inc()
        series.points.inc(score - (0.0 if previous is None else previous))


def _value(child: Counter | Gauge) -> float:
    """The value of a child without labels of its own."""
    (found,) = (s.value for m in child.collect() for s in m.samples if not s.name.endswith("_created"))
    return found
