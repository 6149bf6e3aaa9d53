"""Traces of requests: what spans there are, whose they are, and what is never in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import manylora.server.tracing.spans as spans_module
from manylora.server.errors import ConfigError
from manylora.server.tracing.current import CURRENT_TRACE
from manylora.server.tracing.spans import SpanTracer
from manylora.server.tracing.starting import start_tracing, wants_traces
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN, bearer, chat, tenant_key
from tests.support.waiting import wait_until

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SECRET = "zyxomma"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path, exporter: InMemorySpanExporter
) -> Iterator[Running]:
    service = service_of(tmp_path_factory.mktemp("data"), model, adapters, admin_api_key=[ADMIN])
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service.tracer = SpanTracer(provider)
    with serving(service) as running:
        yield running


def spans_of(server: Running, exporter: InMemorySpanExporter, **request: Any) -> Sequence[ReadableSpan]:
    """All spans of one request, the request's own last."""
    server.wait_until_idle()
    exporter.clear()
    with server.http() as http:
        http.request(request.pop("method", "POST"), request.pop("path", "/v1/chat/completions"), **request)
    server.wait_until_idle()
    wait_until(lambda: any(span.name.startswith(("POST", "GET", "HTTP")) for span in told(exporter)))
    return told(exporter)


def told(exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    return sorted(exporter.get_finished_spans(), key=lambda span: span.end_time or 0)


@pytest.fixture(scope="module")
def key(server: Running) -> str:
    with server.http() as http:
        return tenant_key(http, "acme", ["alpha", "beta"])


def test_a_request_is_part_of_its_callers_trace(
    server: Running, exporter: InMemorySpanExporter, key: str
) -> None:
    headers = {**bearer(key), "traceparent": f"00-{CALLER}-{PARENT}-01", "x-request-id": "mine"}
    spans = spans_of(server, exporter, headers=headers, json=chat("alpha", max_tokens=5, ignore_eos=True))
    by_name = {span.name: span for span in spans}
    assert list(by_name) == ["adapters", "queue", "prefill", "decode", "POST /v1/chat/completions"]
    root = by_name["POST /v1/chat/completions"]
    assert all(f"{span.context.trace_id:032x}" == CALLER for span in spans if span.context)
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert {span.parent and span.parent.span_id for span in spans[:-1]} == {root.context.span_id}
    about = dict(root.attributes or {})
    assert str(about.pop("gen_ai.response.model")).startswith("alpha@")
    prompt = about["gen_ai.usage.input_tokens"]
    assert about == {
        "manylora.request_id": "mine",
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "manylora.tenant": "acme",
        "manylora.adapter": "alpha",
        "manylora.cached_tokens": 0,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": 5,
    }
    assert (by_name["prefill"].attributes or {})["gen_ai.usage.input_tokens"] == prompt
    assert (by_name["decode"].attributes or {})["manylora.finish_reason"] == "length"
    queue, prefill, decode = (by_name[name] for name in ("queue", "prefill", "decode"))
    assert (queue.end_time, prefill.end_time) == (prefill.start_time, decode.start_time)
    assert (queue.start_time or 0) <= (prefill.start_time or 0) <= (decode.start_time or 0)
    assert (root.start_time or 0) <= (by_name["adapters"].start_time or 0)


def test_each_answer_has_spans_and_a_request_so_many_at_most(
    server: Running, exporter: InMemorySpanExporter, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans_module, "MAX_TOLD", 4)
    body = {"model": "beta", "prompt": ["a", "b c"], "n": 3, "max_tokens": 2, "ignore_eos": True}
    spans = spans_of(server, exporter, path="/v1/completions", headers=bearer(key), json=body)
    assert sum(span.name == "decode" for span in spans) == 4
    assert (spans[-1].attributes or {})["gen_ai.usage.output_tokens"] == 12


def test_what_a_caller_says_of_its_trace_may_be_anything(
    server: Running, exporter: InMemorySpanExporter, key: str
) -> None:
    for parent in (
        "",
        "00-0-0-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"ff-{CALLER}-{PARENT}-01",
        "é" * 60,
        "x" * 4000,
    ):
        headers = {**bearer(key), "tracestate": "a=b," * 400}
        headers = {**headers, "traceparent": parent.encode()}  # type: ignore[dict-item]
        root = spans_of(server, exporter, headers=headers, json=chat("alpha", max_tokens=1))[-1]
        assert root.parent is None
        assert (root.attributes or {})["http.response.status_code"] == 200


def test_a_caller_that_does_not_sample_is_not_traced(
    server: Running, exporter: InMemorySpanExporter, key: str
) -> None:
    exporter.clear()
    with server.http() as http:
        headers = {**bearer(key), "traceparent": f"00-{CALLER}-{PARENT}-00"}
        assert http.post("/v1/chat/completions", headers=headers, json=chat("alpha")).status_code == 200
    server.wait_until_idle()
    assert not told(exporter)


@pytest.mark.parametrize(
    ("body", "status"), [(chat("missing"), 404), (chat("alpha", temperature=9), 400), (chat("gamma"), 404)]
)
def test_what_is_refused_is_told_with_its_status(
    server: Running, exporter: InMemorySpanExporter, key: str, body: dict[str, Any], status: int
) -> None:
    spans = spans_of(server, exporter, headers=bearer(key), json=body)
    assert [span.name for span in spans] == ["POST /v1/chat/completions"]
    assert (spans[0].attributes or {})["http.response.status_code"] == status


def test_neither_texts_nor_keys_nor_paths_are_in_spans(
    server: Running, exporter: InMemorySpanExporter, key: str
) -> None:
    messages = [{"role": "user", "content": SECRET}]
    body = chat("alpha", messages=messages, max_tokens=8, stop=[SECRET], user=SECRET)
    asked: list[dict[str, Any]] = [
        {"headers": {**bearer(key), "x-request-id": key}, "json": body},
        {"headers": {**bearer(key), "x-request-id": ADMIN}, "json": {**body, "stream": True}},
        {"headers": bearer(key), "path": f"/v1/{SECRET}?key={key}", "json": body},
        {"headers": bearer(key), "json": {**body, "model": SECRET}},
        {"method": "GET", "headers": bearer(key), "path": f"/v1/models/{SECRET}"},
        {"headers": bearer("ml-" + SECRET), "json": body},
    ]
    for request in asked:
        spans = spans_of(server, exporter, **request)
        text = "".join(span.to_json() for span in spans)
        assert spans
        assert SECRET not in text
        assert key not in text
        assert ADMIN not in text


def test_probes_are_not_traced_and_nothing_is_left_behind(
    server: Running, exporter: InMemorySpanExporter
) -> None:
    exporter.clear()
    with server.http() as http:
        for path in ("/health", "/ready", "/metrics"):
            http.get(path)
    assert not told(exporter)
    assert CURRENT_TRACE.get() is None


@pytest.mark.parametrize(
    ("endpoint", "environment", "wanted"),
    [
        (None, {}, False),
        ("http://collector:4318", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, False),
        ("http://collector:4318", {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_asked_for(endpoint: str | None, environment: dict[str, str], wanted: bool) -> None:
    assert wants_traces(endpoint, environment) is wanted


def test_without_the_packages_a_server_that_should_trace_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    assert start_tracing(None, {}) is None
    with pytest.raises(ConfigError, match=r"manylora\[otel\]"):
        start_tracing("http://collector:4318", {})


class _Collector(HTTPServer):
    """Takes spans over OTLP/HTTP, as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, _Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.server.paths.add(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_spans_reach_a_collector_when_the_server_ends(tmp_path: Path, model: Path, adapters: Path) -> None:
    collector = _Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{collector.server_port}"
        with serving(service_of(tmp_path, model, adapters, otlp_endpoint=url)) as running:
            with running.http() as http:
                assert http.post("/v1/chat/completions", json=chat("beta", max_tokens=3)).status_code == 200
            running.wait_until_idle()
    finally:
        collector.shutdown()
        collector.server_close()
    assert collector.paths == {"/v1/traces"}
    resources = [each for request in collector.received for each in request.resource_spans]
    names = {
        a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"
    }
    assert names == {"manylora"}
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    assert {span.name for span in spans} >= {"queue", "prefill", "decode", "POST /v1/chat/completions"}
    assert len({span.trace_id for span in spans if span.name == "decode"}) == 1


@pytest.mark.sweep
def test_a_collector_that_is_not_there_costs_requests_nothing(
    tmp_path: Path, model: Path, adapters: Path
) -> None:
    with (
        serving(service_of(tmp_path, model, adapters, otlp_endpoint="http://127.0.0.1:9")) as running,
        running.http() as http,
    ):
        assert http.post("/v1/chat/completions", json=chat("beta", max_tokens=3)).status_code == 200
