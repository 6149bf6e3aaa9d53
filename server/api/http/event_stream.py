"""Server-sent events: one JSON object an event, ``[DONE]`` last, faults as an event of their own."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from anyio import Event
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from manylora.server.api.generate.generation import Generation
from manylora.server.api.http.errors import describe
from manylora.server.api.http.limits import PING_SECONDS, SEND_TIMEOUT_SECONDS
from manylora.server.engine.sequence import Delta

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class ChunkFormat(Protocol):
    """Turns deltas into the JSON chunks of one endpoint's stream."""

    def chunks(self, choice: int, delta: Delta) -> Sequence[dict[str, Any]]: ...

    def last_chunks(self) -> Sequence[dict[str, Any]]: ...


def encode(payload: Any) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def stream_events(generation: Generation, form: ChunkFormat) -> AsyncIterator[bytes]:
    """The events of a whole answer."""
    return told_to_the_end(_chunks(generation, form))


async def _chunks(generation: Generation, form: ChunkFormat) -> AsyncGenerator[bytes, None]:
    async with aclosing(generation.events()) as events:
        async for choice, delta in events:
            chunks = form.chunks(choice, delta)
            if chunks:
                yield b"".join(map(encode, chunks))
    yield b"".join(map(encode, form.last_chunks()))


async def told_to_the_end(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """``events``, a fault as an event too (after the first byte there is no other way), and the end."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Exception as error:
        answer = describe(error)
        if answer.row.status >= 500:
            logger.exception("fault in a stream")
        yield encode(answer.body)
    yield DONE


class EventStream(EventSourceResponse):
    """A streamed answer that owns what makes it: however the stream ends, nothing keeps running."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
        grace: float,
    ) -> None:
        """
        Args:
            events: what is sent.
            close: ends the work behind the events; called however the stream ends.
            headers: of the answer.
            grace: seconds the stream may go on once the server has been told to stop.
        """
        super().__init__(
            events,
            headers=headers,
            ping=PING_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
            sep="\n",
            send_timeout=SEND_TIMEOUT_SECONDS,
            shutdown_event=Event(),
            shutdown_grace_period=grace,
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a client stopped reading its stream")
        finally:
            await self._close()
