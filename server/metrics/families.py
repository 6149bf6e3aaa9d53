"""Families of Prometheus metrics: what is counted, under which name, in which buckets."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

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
TIERS = ("device", "memory", "disk", "remote")  # where an adapter that is needed may be
LOADED_FROM = ("disk", "remote", "publish")  # from where one is brought in

# From a step of a small model (1 ms on a GPU, 10 ms on a CPU) to one of a big model on a busy machine.
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_WAIT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DISTINCT = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class StepFamilies:
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


class RequestFamilies:
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
        self.scores = counter("feedback", "Answers that users have scored.", "adapter")
        self.points = Gauge("manylora_feedback_points", "Sum of scores.", ("adapter",), registry=registry)
        self.queue_by = summary("queue", "Time from arrival to the first step, by adapter.")
        self.first_token_by = summary("time_to_first_token", "Arrival to first token, by adapter.")
        self.inter_token_by = summary("inter_token", "Time between two tokens, by adapter.")
        self.request_by = summary("request", "Arrival to last token, by adapter.")

    @property
    def by_adapter(self) -> tuple[Counter | Gauge | Summary, ...]:
        """The families whose only label is ``adapter``."""
        counters = (self.prompt, self.generated, self.aborted, self.scores)
        return (
            *counters,
            self.points,
            self.queue_by,
            self.first_token_by,
            self.inter_token_by,
            self.request_by,
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one adapter has served."""

    requests: int = 0  # ended, however
    prompt_tokens: int = 0
    generated_tokens: int = 0
    scores: int = 0  # answers that users have scored
    points: float = 0.0  # the sum of their scores


class Series:
    """The series of one adapter, looked up once so that hot calls need no lookup by label."""

    def __init__(self, families: RequestFamilies, label: str) -> None:
        self.outcome = {outcome: families.finished.labels(label, outcome) for outcome in OUTCOMES}
        self.prompt = families.prompt.labels(label)
        self.generated = families.generated.labels(label)
        self.aborted = families.aborted.labels(label)
        self.scores = families.scores.labels(label)
        self.points = families.points.labels(label)
        self.queue = families.queue_by.labels(label)
        self.first_token = families.first_token_by.labels(label)
        self.inter_token = families.inter_token_by.labels(label)
        self.request = families.request_by.labels(label)

    def traffic(self) -> Traffic:
        requests = sum(_value(counter) for counter in self.outcome.values())
        return Traffic(
            requests=int(requests),
            prompt_tokens=int(_value(self.prompt)),
            generated_tokens=int(_value(self.generated)),
            scores=int(_value(self.scores)),
            points=_value(self.points),
        )


class AdapterFamilies:
    """Registration and residency."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"manylora_{name}", text, registry=registry)

        self.registered = gauge("adapters_registered", "Adapters a request can name.")
        self.resident = gauge("adapters_resident", "Adapters whose pages are on the device.")
        self.nbytes = gauge("adapters_resident_bytes", "Device memory their pages take.")
        self.host_bytes = gauge("adapters_memory_bytes", "Host memory that cached adapters take.")
        self.evicted = Counter(
            "manylora_adapter_evictions_total",
            "Adapters taken off the device to make room for others.",
            registry=registry,
        )
        self.merged = gauge("merged_copies", "Merged copies of the base, those being built included.")
        self.merged_bytes = gauge("merged_copies_bytes", "Memory they take.")
        self.auto_merged = Counter(
            "manylora_auto_merges_total",
            "Copies that were merged because most answers were for one adapter.",
            registry=registry,
        )
        self.hits = Counter(
            "manylora_adapter_tier_hits_total",
            "Adapters that requests needed, by where they were found.",
            ("tier",),
            registry=registry,
        )
        self.load = Histogram(
            "manylora_adapter_load_seconds",
            "Reading, checking and packing one adapter, by where it came from; publish: from its source.",
            ("tier",),
            registry=registry,
            buckets=_LOAD_SECONDS,
        )


def _value(child: Counter | Gauge) -> float:
    """The value of a child without labels of its own."""
    (found,) = (s.value for m in child.collect() for s in m.samples if not s.name.endswith("_created"))
    return found
