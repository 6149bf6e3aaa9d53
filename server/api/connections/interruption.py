"""The end of requests that the server cuts short: an error object, or the last events of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.access.scopes import OPEN
from manylora.server.api.http.anthropic import id_headers
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.event_stream import fault_events, is_last
from manylora.server.errors import ServerStopping

END_SECONDS = 2.0  # that a client gets to take the end of its answer


class Interruptible:
    """An application whose requests end properly when their tasks are cancelled.

    The server cancels the task of a request when it may run no longer. Whatever the request was doing, it
    is then answered 503 if its answer has not begun. A stream that has begun ends with an error event, and
    ``[DONE]`` where its API has that. Wrap the whole application in it, so that nothing is outside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self.app(scope, receive, answer.send)
        except asyncio.CancelledError:
            _take_cancellation()
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await answer.end(scope, receive)


def _take_cancellation() -> None:
    """Take back the cancellation of the current task, so that it may wait again."""
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass


class _Answer:
    """What has been sent of one answer, and what is still to be sent where it is cut short."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: Mapping[str, str] | None = None  # None: it has not begun
        self._complete = False
        self._said_last = False

    async def send(self, message: Message) -> None:
        """Pass ``message`` on, and remember what the client has now."""
        await self._send(message)
        if message["type"] == "http.response.start":
            self._headers = Headers(raw=list(message["headers"]))
        elif message["type"] == "http.response.body":
            self._said_last = self._said_last or is_last(bytes(message.get("body", b"")))
            self._complete = not message.get("more_body", False)

    async def end(self, scope: Scope, receive: Receive) -> None:
        """Send what makes the answer a complete one."""
        answer = error_answer(ServerStopping("The server is stopping; this answer was not completed"), OPEN)
        if self._headers is None:
            response = answer.response(scope)
            response.headers["connection"] = "close"
            response.headers.update(id_headers(scope))  # this is outside of the middleware that adds them
            await response(scope, receive, self.send)
        elif self._is_stream and not self._complete:
            last = b"" if self._said_last else fault_events(answer, scope)
            await self._send({"type": "http.response.body", "body": last, "more_body": False})

    @property
    def _is_stream(self) -> bool:
        headers = self._headers or {}
        return headers.get("content-type", "").startswith("text/event-stream")
