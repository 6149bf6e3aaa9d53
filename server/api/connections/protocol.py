"""The HTTP/1.1 protocol with what uvicorn's lacks: bounds on heads, on times and on connections; HTTP/1.0."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from starlette._utils import get_route_path
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from manylora.server.api.access.scopes import OPEN
from manylora.server.api.connections.connections import Connections
from manylora.server.api.connections.pace import Pace
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.limits import MAX_HEAD_BYTES
from manylora.server.errors import RequestTimeout, TooManyConnections

PROBES = frozenset({"/health", "/ready"})  # answered on connections beyond the bound, too


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. Closes it when a head is too large, when something takes too long, or to make room.

    What is buffered of a head stays below the bound
    plus one read of the socket.
    """

    head_open = False  # a request has begun and its headers are not complete
    head_bytes = 0  # received since it began, up to one read more

    def __init__(self, *arguments: Any, room: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._room = room
        self._reserved = False  # only for probes
        self._served = False  # a request came before
        self._since = 0.0  # when it began to wait for a head, or the head began
        self._body: Pace | None = None  # of a body that is not complete
        self._taken: Pace | None = None  # of what the client takes while it lags behind
        self._unsent = 0  # bytes, when last looked at

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._reserved = not self._room.enter(self, self.client[0] if self.client else None)
        if self._reserved:
            self.app = ProbesOnly(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.head_bytes = self.head_bytes + len(data) if self.head_open else 0
        if self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too large")

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_open = True
        if self._served:
            self._since = self.loop.time()

    def on_headers_complete(self) -> None:
        self.head_open = False
        self._served = True
        self._body = Pace(self.loop.time())
        self._room.busy(self)
        super().on_headers_complete()
        if self.parser.get_http_version() != "1.1":
            # The body ends with the connection: chunks came with HTTP/1.1, and so did "100 Continue".
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = _AnyLength()
            self.cycle.waiting_for_100_continue = False
            self.cycle.keep_alive = False
        if self._reserved:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._body is not None:
            self._body.add(len(body), self.loop.time())
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._body = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()
        if not self._is_answering:
            self._room.waits(self)

    # The sweep over all connections.

    def check(self, now: float) -> None:
        """Close the connection if its time for something is over."""
        limits = self._room.limits
        if self._lags(now):
            self.drop()
        elif self.transport.is_closing():
            return
        elif self._body is not None:
            if self.flow.read_paused:  # nobody reads: the sender can't be blamed
                self._body = Pace(now)
            elif self._body.is_too_slow(now, limits.body, limits.rate):
                self._time_out("The request's body did not arrive in time")
        elif self._is_answering:
            return
        elif self.head_open:
            if now - self._since > limits.head:
                self._time_out("The request's head did not arrive in time")
        elif now - self._since > (limits.idle if self._served else limits.head):
            self.transport.close()

    def drop(self) -> None:
        """Close the connection at once, whatever is still to be sent."""
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _lags(self, now: float) -> bool:
        """Whether the client takes what is sent too slowly. Told only while nothing is added to it."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or (self._is_answering and not self.flow.write_paused):
            self._taken = None
            return False
        if self._taken is None:
            self._taken = Pace(now)
        elif unsent < self._unsent:
            self._taken.add(self._unsent - unsent, now)
        self._unsent = unsent
        return self._taken.is_too_slow(now, self._room.limits.write, self._room.limits.rate)

    def _time_out(self, message: str) -> None:
        """Answer 408, unless an answer has begun, and close."""
        if self.cycle is None or self.head_open or not self.cycle.response_started:
            scope = None if self.cycle is None or self.head_open else cast(Scope, self.cycle.scope)
            self.transport.write(_encode(error_answer(RequestTimeout(message), OPEN).response(scope)))
        self.transport.close()


def bounded_protocol(room: Connections) -> type[asyncio.Protocol]:
    """What uvicorn makes its connections with, all of them in ``room``."""
    return cast("type[asyncio.Protocol]", partial(BoundedHttpProtocol, room=room))


class ProbesOnly:
    """An application of which only the probes are answered: there are too many connections."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if get_route_path(scope) in PROBES:
            await self.app(scope, receive, send)
            return
        error = TooManyConnections("Too many connections are open; try again later")
        await error_answer(error, OPEN).response(scope)(scope, receive, send)


class _AnyLength(int):
    """The length of a body that ends with its connection, as uvicorn counts it down: no body is too long."""

    def __lt__(self, other: int) -> bool:
        return False

    def __sub__(self, other: int) -> _AnyLength:
        return self


def _encode(response: Response) -> bytes:
    """A whole answer as it goes over the connection, which it closes."""
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", bytes(response.body)])
