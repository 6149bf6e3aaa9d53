"""Traces of requests as OpenTelemetry spans: the request, and of each answer queue, prefill and decode.

A caller's W3C trace context (``traceparent``) is continued. Spans have names of routes, tenants and adapters,
and counts of tokens; never texts, paths or keys.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Final

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.engine.stream import Ended
from manylora.server.tracing.current import CURRENT_TRACE

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

MAX_TOLD: Final = 32  # answers of one request that have spans of their own
CLOSE_SECONDS: Final = 3.0  # that the last spans have to be sent in
_NANOSECONDS: Final = 1_000_000_000


class SpanTracer:
    """Begins a trace for each request."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("manylora")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str], request_id: str) -> SpanTrace:
        """The trace of a request: part of the caller's, if it tells one, or of the request that asks."""
        current = CURRENT_TRACE.get()
        own = isinstance(current, SpanTrace)
        parent = current.context if isinstance(current, SpanTrace) else self._propagator.extract(headers)
        kind = SpanKind.INTERNAL if own else SpanKind.SERVER
        span = self._tracer.start_span("HTTP", parent, kind, {"manylora.request_id": request_id})
        return SpanTrace(self._tracer, span)

    def close(self) -> None:
        """Send what is left; gives up after a few seconds."""
        closing = Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class SpanTrace:
    """The spans of one request. Event loop."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span, context.Context())
        self._tracer = tracer
        self._epoch = time.time_ns() - round(monotonic() * _NANOSECONDS)  # of ``monotonic()``
        self._told = self._prompt = self._completion = self._cached = 0

    def matched(self, method: str, route: str, tenant: str | None) -> None:
        """The route that answers, as it is declared, and the tenant whose key it is."""
        self.span.update_name(f"{method} {route}")
        self.span.set_attributes({"http.request.method": method, "http.route": route})
        if tenant is not None:
            self.span.set_attribute("manylora.tenant", tenant)

    def admitted(self, model: str, adapter: str, since: float) -> None:
        """Its adapters are on the device; it has waited for them since then (``monotonic()``)."""
        self.span.set_attributes({"gen_ai.response.model": model, "manylora.adapter": adapter})
        self._span("adapters", since, monotonic(), {"manylora.adapter": adapter})

    def counting(self, ended: Ended | None) -> Ended:
        """What hears of the end of each of its sequences, and tells ``ended``."""

        def hear(sequence: Sequence, reason: FinishReason) -> None:
            self._tell(sequence, reason)
            if ended is not None:
                ended(sequence, reason)

        return hear

    def end(self, status: int | None) -> None:
        """The request was answered with that status, or not at all."""
        if status is not None:
            self.span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()

    def _tell(self, sequence: Sequence, reason: FinishReason) -> None:
        self._count(sequence)
        self._told += 1
        if self._told > MAX_TOLD:
            return
        now, scheduled, first = monotonic(), sequence.first_scheduled, sequence.first_token
        about: dict[str, str | int] = {
            "manylora.adapter": sequence.mix.label,
            "manylora.answer": sequence.index,
        }
        self._span("queue", sequence.arrival, now if scheduled is None else scheduled, about)
        if scheduled is None:
            return
        prompt = {
            "gen_ai.usage.input_tokens": sequence.num_prompt_tokens,
            "manylora.cached_tokens": sequence.num_cached_tokens,
        }
        self._span("prefill", scheduled, now if first is None else first, {**about, **prompt})
        if first is None:
            return
        answer = {
            "gen_ai.usage.output_tokens": sequence.num_output_tokens,
            "manylora.finish_reason": reason.value,
            "manylora.preemptions": sequence.num_preemptions,
        }
        last = first if sequence.last_token is None else sequence.last_token
        self._span("decode", first, last, {**about, **answer})

    def _count(self, sequence: Sequence) -> None:
        """Add up what the whole request took, as its usage does: a prompt counts once."""
        if sequence.index == 0:
            self._prompt += sequence.num_prompt_tokens
            self._cached += sequence.num_cached_tokens
        self._completion += sequence.num_output_tokens
        self.span.set_attributes(
            {
                "gen_ai.usage.input_tokens": self._prompt,
                "gen_ai.usage.output_tokens": self._completion,
                "manylora.cached_tokens": self._cached,
            }
        )

    def _span(self, name: str, began: float, ended: float, attributes: Mapping[str, str | int]) -> None:
        span = self._tracer.start_span(
            name, self.context, attributes=attributes, start_time=self._time(began)
        )
        span.end(self._time(max(began, ended)))

    def _time(self, at: float) -> int:
        """Unix nanoseconds of a time of ``monotonic()``."""
        return self._epoch + round(at * _NANOSECONDS)
