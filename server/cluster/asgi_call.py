"""One request to an ASGI application without a connection; its answer comes in as few pieces as it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

_END_SECONDS = 10.0  # that an application gets to end once nobody waits for its answer
_MOST_WAITING = 256  # messages that are not taken yet, before the application has to wait


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request as it came, its body complete."""

    method: str
    path: str  # decoded
    raw_path: bytes  # as it was sent
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case
    body: bytes = field(repr=False)
    client: tuple[str, int] | None
    scheme: str = "http"
    http_version: str = "1.1"

    def scope(self, root_path: str) -> MutableMapping[str, Any]:
        """The ASGI scope of the request, for an application under ``root_path``."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.http_version,
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query,
            "root_path": root_path,
            "headers": list(self.headers),
            "client": self.client,
            "server": None,
            "state": {},
        }


class AsgiCall:
    """A request that runs. Who reads :meth:`batches` no longer is a client that has hung up."""

    def __init__(self, app: ASGIApp, request: RawRequest, root_path: str = "") -> None:
        self._app = app
        self._request = request
        self._scope = request.scope(root_path)
        self._waiting: list[Message] = []
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._gone = asyncio.Event()
        self._body_read = False

    def hang_up(self) -> None:
        """Tell the application that its client is gone."""
        self._gone.set()
        self._taken.set()

    async def batches(self) -> AsyncGenerator[list[Message], None]:
        """The messages of the answer: whatever has come since the last ones were taken, together.

        Raises:
            Exception: what the application raises, which its own handlers did not answer.
        """
        task = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))
        task.add_done_callback(lambda _: self._news.set())
        try:
            while not (task.done() and not self._waiting):
                await self._news.wait()
                self._news.clear()
                taken, self._waiting = self._waiting, []
                self._taken.set()
                if taken:
                    yield taken
            task.result()
        finally:
            self.hang_up()
            await self._end(task)

    async def _end(self, task: asyncio.Future[None]) -> None:
        """Let the application see that its client is gone, and cancel it if it does not care."""
        if not task.done():
            with suppress(asyncio.CancelledError):  # of who closes this: the application must end first
                await asyncio.wait({task}, timeout=_END_SECONDS)
        if not task.done():
            task.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # has been raised, or has nobody to tell

    async def _receive(self) -> Message:
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            raise OSError("the client is gone")
        self._waiting.append(message)
        self._news.set()
        while len(self._waiting) >= _MOST_WAITING and not self._gone.is_set():
            self._taken.clear()
            await self._taken.wait()
