"""Begins and ends the trace of each request."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.access.redaction import Redactor
from manylora.server.api.http.anthropic import REQUEST_ID
from manylora.server.tracing.current import CURRENT_TRACE, RequestTracer

_CONTEXT = ("traceparent", "tracestate")


class Tracing:
    """Middleware of servers that trace; stands within what gives requests their ids."""

    def __init__(
        self, app: ASGIApp, tracer: RequestTracer, redactor: Redactor, untraced: Collection[str]
    ) -> None:
        """``untraced`` are paths that are asked all the time, and tell nothing."""
        self.app = app
        self._untraced = untraced
        self._tracer = tracer
        self._redactor = redactor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._untraced:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        context = {name: headers[name] for name in _CONTEXT if name in headers}
        trace = self._tracer.begin(context, self._redactor.redact(scope.get(REQUEST_ID, "")))
        status: int | None = None

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = CURRENT_TRACE.set(trace)
        try:
            await self.app(scope, receive, send_noting)
        finally:
            CURRENT_TRACE.reset(token)
            trace.end(status)
