"""One streamed completion over a connection of its own, timed, on bare asyncio transports."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from manylora.server.cli.loadgen.response_reader import BadResponse, EventReader, ResponseReader

_EMPTY_TEXT = (b'"text":""', b'"text": ""')
_TELLING = (b'"usage":{', b'"usage": {', b'"error"')  # inside a JSON string the quotes would be escaped


@dataclass(slots=True)
class Exchange:
    """What was seen of one request for a completion. Times are ``perf_counter`` seconds."""

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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address at which completions are asked for."""

    host: str
    port: int
    path: str = "/v1/completions"
    tls: bool = False
    key: str | None = None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Endpoint:
        """The endpoint of the server at ``url``, which may end in ``/v1``.

        Raises:
            ValueError: it is not the URL of an HTTP server.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or parts.hostname is None:
            raise ValueError(f"{url!r} is not an http:// or https:// URL")
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/completions"
        return cls(parts.hostname, parts.port or (443 if tls else 80), path, tls, key)

    def request(self, body: dict[str, object]) -> bytes:
        """The bytes of one request on a connection of its own."""
        content = json.dumps(body).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        head = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            *(() if self.key is None else (f"Authorization: Bearer {self.key}",)),
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Connection: close",
            f"Content-Length: {len(content)}",
        )
        return "\r\n".join(head).encode() + b"\r\n\r\n" + content


async def complete(endpoint: Endpoint, body: dict[str, object], timeout: float) -> Exchange:
    """Ask for one completion and read the stream to its end. Faults are told in ``Exchange.error``."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[Exchange] = loop.create_future()
    request = endpoint.request(body)
    tls = True if endpoint.tls else None
    try:
        transport, _ = await loop.create_connection(
            lambda: _Protocol(request, closed), endpoint.host, endpoint.port, ssl=tls
        )
    except OSError as error:
        return Exchange(sent=perf_counter(), end=perf_counter(), error=f"can't connect: {error}")
    try:
        async with asyncio.timeout(timeout):
            return await closed
    except TimeoutError:
        return Exchange(sent=perf_counter(), end=perf_counter(), error=f"no end within {timeout:g} s")
    finally:
        transport.abort()


def greedy(choice: dict[str, object], prompt: str, output_tokens: int) -> dict[str, object]:
    """The body of a streamed completion of exactly ``output_tokens`` tokens; ``choice`` names the model."""
    return {
        **choice,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
