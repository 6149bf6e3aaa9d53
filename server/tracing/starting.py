"""Whether there are traces, and where they are sent."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from manylora.server.errors import ConfigError
from manylora.server.tracing.current import RequestTracer

logger = logging.getLogger(__name__)

_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TRACES_PATH = "/v1/traces"


def wants_traces(endpoint: str | None, environment: Mapping[str, str]) -> bool:
    """Whether the option or OpenTelemetry's own variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if endpoint is not None:
        return True
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    return exporter != "none" and any(environment.get(name) for name in _VARIABLES)


def start_tracing(endpoint: str | None, environment: Mapping[str, str]) -> RequestTracer | None:
    """What traces requests and sends the spans over OTLP/HTTP; None if nobody asks for them.

    What ``endpoint`` does not say is as OpenTelemetry's variables say: headers, sampling, attributes.

    Raises:
        ConfigError: the packages for it are not installed.
    """
    if not wants_traces(endpoint, environment):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from manylora.server.tracing.spans import SpanTracer  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("traces need further packages: pip install 'manylora[otel]'") from error
    service = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "manylora"}
    provider = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=_traces_url(endpoint))))
    logger.info("requests are traced")
    return SpanTracer(provider)


def _traces_url(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    return endpoint if endpoint.endswith(_TRACES_PATH) else endpoint.rstrip("/") + _TRACES_PATH
