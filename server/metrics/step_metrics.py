"""Metrics of the engine's steps: how long they take, what is in them, and what they leave."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from manylora.server.metrics.asked_gauge import asked_gauge

# From a step of a small model (1 ms on a GPU, 10 ms on a CPU) to one of a big model on a busy machine.
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ADAPTERS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class StepMetrics:
    """What one engine step says of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"manylora_{name}", text, registry=registry, buckets=buckets)

        self._running = asked_gauge(registry, "requests_running", "Sequences admitted to the batch.")
        self._waiting = asked_gauge(registry, "requests_waiting", "Sequences waiting for admission.")
        self._kv_used = asked_gauge(registry, "kv_cache_used_blocks", "KV cache blocks held by sequences.")
        self._kv_total = asked_gauge(
            registry, "kv_cache_blocks", "KV cache blocks in total (16 tokens each)."
        )
        self._seconds = histogram("step_seconds", "Duration of one engine step.", STEP_SECONDS)
        self._tokens = histogram("step_tokens", "Tokens computed in one step (prompt and decode).", _TOKENS)
        self._sequences = histogram("step_sequences", "Sequences in the batch of one step.", _SEQUENCES)
        self._adapters = histogram("step_adapters", "Distinct adapters in the batch of one step.", _ADAPTERS)
        self._out_of_memory = Counter(
            "manylora_steps_out_of_memory_total",
            "Steps that memory did not last for, and that were done again in smaller ones.",
            registry=registry,
        )
        self._uncaptured = asked_gauge(
            registry, "uncaptured_graphs", "Sizes of steps whose CUDA graph could not be captured."
        )
        self._fallback = asked_gauge(
            registry,
            "kernels_fallback",
            "1 where slower kernels run than those that are made for the device.",
        )

    def ask(
        self,
        *,
        running: Callable[[], int],
        waiting: Callable[[], int],
        kv_used: Callable[[], int],
        kv_total: Callable[[], int],
    ) -> None:
        """Where the gauges are read whenever metrics are asked for, in any thread. KV in blocks."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._kv_used.set_function(kv_used)
        self._kv_total.set_function(kv_total)

    def ask_uncaptured(self, count: Callable[[], int]) -> None:
        """Where the gauge of failed captures is read, in any thread."""
        self._uncaptured.set_function(count)

    def ask_fallback(self, fallback: Callable[[], bool]) -> None:
        """Where it is read whether slower kernels run than those made for the device, in any thread."""
        self._fallback.set_function(fallback)

    def out_of_memory(self) -> None:
        """Memory did not last for a step."""
        self._out_of_memory.inc()

    def record(
        self, *, batch_tokens: int, batch_sequences: int, distinct_adapters: int, seconds: float
    ) -> None:
        """One engine step has run; one without sequences counts for nothing."""
        if batch_sequences:
            self._tokens.observe(batch_tokens)
            self._sequences.observe(batch_sequences)
            self._adapters.observe(distinct_adapters)
            self._seconds.observe(seconds)
