"""Server-sent events: one JSON object an event, ``[DONE]`` last, faults as an event of their own.

Events of some APIs have names, which their objects repeat as ``type``. Anthropic's end without ``[DONE]``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from manylora.server.api.access.scopes import KeyScope
from manylora.server.api.http.anthropic import MESSAGE_STOP, asks_anthropic
from manylora.server.api.http.error_answers import ErrorAnswer, error_answer
from manylora.server.api.http.limits import PING_SECONDS
from manylora.server.engine.sequence import Delta

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class DeltaSource(Protocol):
    """What generates an answer: yields each delta with the index of its choice."""

    def events(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Every delta with the index of its choice, as they come."""


class ChunkFormat(Protocol):
    """Turns deltas into the JSON chunks of one endpoint's stream."""

    def chunks(self, choice: int, delta: Delta) -> Sequence[dict[str, Any]]:
        """The chunks that ``delta`` makes; none while its text is held back."""

    def last_chunks(self) -> Sequence[dict[str, Any]]:
        """The chunks that follow the end of the last choice."""


def encode(payload: Any) -> bytes:
    """One server-sent event that holds ``payload`` as JSON."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def encode_named(events: Iterable[Mapping[str, Any]]) -> bytes:
    """Server-sent events under the names that their objects have as ``type``."""
    return b"".join(
        b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n" for event in events
    )


def is_last(written: bytes) -> bool:
    """Whether a stream that has written this needs nothing more."""
    return written.endswith((DONE, MESSAGE_STOP))


def fault_events(error: ErrorAnswer, scope: Scope) -> bytes:
    """What ends a stream, that the request of ``scope`` began, by a fault."""
    told = error.told(scope)
    return encode_named([told]) if asks_anthropic(scope) else encode(told) + DONE


def stream_events(generation: DeltaSource, form: ChunkFormat, caller: KeyScope) -> AsyncIterator[bytes]:
    """The server-sent events of a generated answer, in the format of its endpoint, to the last one."""
    return with_last_events(_chunks(generation, form), caller)


async def _chunks(generation: DeltaSource, form: ChunkFormat) -> AsyncGenerator[bytes, None]:
    async with aclosing(generation.events()) as events:
        async for choice, delta in events:
            chunks = form.chunks(choice, delta)
            if chunks:
                yield b"".join(map(encode, chunks))
    yield b"".join(map(encode, form.last_chunks()))


async def with_last_events(events: AsyncGenerator[bytes, None], caller: KeyScope) -> AsyncIterator[bytes]:
    """``events``, then a fault as an event of its own if they end by one, then ``[DONE]``.

    After the first byte has been sent there is no other way to tell a client of a fault. ``caller`` is who
    reads it.
    """
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Exception as error:
        answer = error_answer(error, caller)
        if answer.kind.status >= 500:
            logger.exception("fault in a stream")
        yield encode(answer.body)
    yield DONE


def _comment() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


class EventStream(EventSourceResponse):
    """A streamed answer that owns what makes it: however the stream ends, nothing keeps running."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
        ping: Callable[[], ServerSentEvent] = _comment,
    ) -> None:
        """
        Args:
            events: what is sent.
            close: ends the work behind the events; called however the stream ends.
            headers: of the answer.
            ping: what is sent when there has been nothing else for a while.
        """
        super().__init__(
            events,
            headers=headers,
            ping=PING_SECONDS,
            ping_message_factory=ping,
            sep="\n",
            # A server that stops ends its requests itself, and tells their clients so.
            shutdown_grace_period=math.inf,
        )
        del self.headers["connection"]  # it is the protocol's to say
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()
