"""What every request passes through, as pure ASGI so that disconnects stay visible to the routes."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.limits import MAX_BODY_BYTES
from manylora.server.api.http.multipart import is_json
from manylora.server.errors import AdminKeyNeeded, BodyTooLarge, Unauthorized
from manylora.server.metrics.metrics import Metrics

ADAPTERS_PATH = "/v1/adapters"
ADMIN_PATHS = (ADAPTERS_PATH, "/v1/aliases", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestId:
    """Middleware that gives every answer an ``x-request-id``: the client's own, or a new one."""

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
    """Middleware that refuses bodies over ``limit`` bytes.

    The declared length decides, else the bytes that have come. Uploads of adapters have a bound of their
    own, ``upload_limit``.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, upload_limit: int, limit: int = MAX_BODY_BYTES
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.upload_limit = upload_limit
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.upload_limit if _is_upload(scope, headers) else self.limit
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > limit:
            self.metrics.requests.rejected("invalid")
            await error_answer(self._too_large(limit)).response()(scope, receive, send)
            return
        seen = 0

        async def receive_bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise self._too_large(limit)  # surfaces in the route that reads the body
            return message

        await self.app(scope, receive_bounded, send)

    def _too_large(self, limit: int) -> BodyTooLarge:
        option = " (--max-upload-bytes)" if limit == self.upload_limit else ""
        return BodyTooLarge(f"The request body is larger than {limit} bytes{option}")


def _is_upload(scope: Scope, headers: Headers) -> bool:
    kind = headers.get("content-type", "")
    return scope["method"] == "PUT" and scope["path"].startswith(f"{ADAPTERS_PATH}/") and not is_json(kind)


class ApiKeySet:
    """The API keys of one sort, hashed. All are compared, in constant time, whichever matches."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def contains(self, key: str) -> bool:
        """Whether ``key``, as read from a header, is one of the configured keys."""
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


class ApiKeyCheck:
    """Middleware that refuses requests without a configured API key.

    With keys for administration, routes under ``ADMIN_PATHS`` need one of those; the other routes accept
    either sort. Without them, one sort opens everything. ``open_paths`` need none. The path is the one the
    router uses (``scope["path"]``), never one rebuilt from headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        keys: ApiKeySet,
        admin_keys: ApiKeySet,
        open_paths: frozenset[str],
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.keys = keys
        self.admin_keys = admin_keys
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            error = self._refusal(scope["path"], Headers(scope=scope))
        if error is None:
            await self.app(scope, receive, send)
            return
        answer = error_answer(error)
        self.metrics.requests.rejected(answer.kind.rejection or "other")
        await answer.response()(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> Unauthorized | AdminKeyNeeded | None:
        """Why the request may not pass, if so."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        key = value.strip() if scheme.lower() == "bearer" else ""
        known, admin = self.keys.contains(key), self.admin_keys.contains(key)
        guarded = bool(self.admin_keys) and is_admin_path(path)
        if admin or (not guarded and (known or not self.keys)):
            return None
        if known:
            return AdminKeyNeeded("This key does not manage adapters: that takes an admin key")
        return Unauthorized("This server needs an API key: send the header 'Authorization: Bearer KEY'")


def is_admin_path(path: str) -> bool:
    """Whether ``path`` is one of the routes that manage adapters."""
    return any(path == admin or path.startswith(f"{admin}/") for admin in ADMIN_PATHS)
