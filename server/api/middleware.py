"""What every request passes through, as pure ASGI so that disconnects stay visible to the routes."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import BodyTooLarge, Unauthorized, describe
from server.api.limits import MAX_BODY_BYTES
from server.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestId:
    """Gives every answer an ``x-request-id``: the client's own when it is well-formed, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}"
        scope["manylora.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """Refuses bodies over ``limit`` bytes: by their declared length, else as soon as they exceed it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, limit: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.metrics = metrics
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self.limit:
            self.metrics.rejected("invalid")
            await describe(self._error()).response()(scope, receive, send)
            return
        seen = 0

        async def receive_bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise self._error()  # surfaces in the route that reads the body
            return message

        await self.app(scope, receive_bounded, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.limit} bytes")


class ApiKeys:
    """Lets requests through that bear one of the keys; ``open_paths`` need none.

    Keys are kept hashed and every one is compared in constant time, whichever matches. The path is the
    one the router uses (``scope["path"]``), never one rebuilt from headers.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, keys: Iterable[str], open_paths: frozenset[str]
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.open_paths or self._admits(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        self.metrics.rejected("unauthorized")
        error = Unauthorized("This server needs an API key: send the header 'Authorization: Bearer KEY'")
        await describe(error).response()(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return scheme.lower() == "bearer" and any(matches)
