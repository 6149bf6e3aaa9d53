"""One streamed completion over a connection of its own, timed, on bare asyncio transports."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from bench.sse import BadResponse, EventReader, ResponseReader

_EMPTY_TEXT = (b'"text":""', b'"text": ""')
_TELLING = (b'"usage":{', b'"usage": {', b'"error"')  # inside a JSON string the quotes would be escaped


@dataclass(slots=True)
class Exchange:
    """What was seen of one request. Times are ``perf_counter`` seconds."""

    sent: float
    chunks: list[float] = field(default_factory=list)  # arrival of every event that brought text
    end: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def first_token(self) -> float | None:
        """Seconds from sending to the first text."""
        return self.chunks[0] - self.sent if self.chunks else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between events that brought text; one token each, unless the server held text back."""
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def latency(self) -> float:
        """Seconds from sending to the end of the stream."""
        return self.end - self.sent


class _Protocol(asyncio.Protocol):
    """Fills an :class:`Exchange` as bytes arrive. Only events with a usage or an error are parsed as JSON."""

    def __init__(self, request: bytes, closed: asyncio.Future[Exchange]) -> None:
        self._request = request
        self._closed = closed
        self._response = ResponseReader()
        self._events = EventReader()
        self._failed = b""
        self.exchange = Exchange(sent=0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.exchange.sent = perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self.exchange.end = now
        try:
            body = self._response.feed(data)
            if self._response.status == 200:
                for event in self._events.feed(body):
                    self._take(event, now)
            else:
                self._failed += body
        except (BadResponse, ValueError) as error:
            self.exchange.error = f"{type(error).__name__}: {error}"

    def _take(self, event: bytes, now: float) -> None:
        if any(mark in event for mark in _TELLING):
            content: dict[str, Any] = json.loads(event)
            if content.get("error"):
                self.exchange.error = str(content["error"])
            if usage := content.get("usage"):
                self.exchange.prompt_tokens = usage["prompt_tokens"]
                self.exchange.output_tokens = usage["completion_tokens"]
            if not any(choice.get("text") for choice in content.get("choices", ())):
                return
        elif any(empty in event for empty in _EMPTY_TEXT):
            return
        self.exchange.chunks.append(now)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self.exchange
        if self._response.status != 200:
            exchange.error = f"HTTP {self._response.status}: {self._failed[:500].decode(errors='replace')}"
        elif exc is not None:
            exchange.error = f"connection lost: {exc}"
        elif exchange.error is None and not exchange.output_tokens:
            exchange.error = "the stream ended without usage"
        if not self._closed.done():
            self._closed.set_result(exchange)


async def complete(host: str, port: int, body: dict[str, object], timeout: float) -> Exchange:
    """``POST /v1/completions`` and read the stream to its end. Faults are told in ``Exchange.error``."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[Exchange] = loop.create_future()
    request = _http_request(f"{host}:{port}", json.dumps(body).encode())
    try:
        transport, _ = await loop.create_connection(lambda: _Protocol(request, closed), host, port)
    except OSError as error:
        return Exchange(sent=perf_counter(), end=perf_counter(), error=f"can't connect: {error}")
    try:
        async with asyncio.timeout(timeout):
            return await closed
    except TimeoutError:
        return Exchange(sent=perf_counter(), end=perf_counter(), error=f"no end within {timeout:g} s")
    finally:
        transport.abort()


def _http_request(host: str, body: bytes) -> bytes:
    head = (
        "POST /v1/completions HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        "Connection: close",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
