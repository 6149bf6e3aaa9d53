"""What every request passes through, as pure ASGI so that disconnects stay visible to the routes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote
from uuid import uuid4

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.access.json_log import CURRENT_REQUEST
from manylora.server.api.access.scopes import ADDED_HEADERS
from manylora.server.api.http.anthropic import REQUEST_ID, id_headers
from manylora.server.api.http.limits import (
    MAX_BODY_BYTES,
    MAX_FILE_BYTES,
    MAX_FORM_BYTES,
    MAX_PART_BYTES,
)
from manylora.server.api.http.multipart import is_json
from manylora.server.api.http.state import IGNORED_FIELDS
from manylora.server.api.http.unpacking import unpacked, unpackers
from manylora.server.errors import BodyTooLarge, UnknownEncoding

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

IGNORED_FIELDS_HEADER: Final = "x-manylora-ignored-fields"
MAX_NAMED_FIELDS: Final = 32  # in the header, which ends in "..." where there are more

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TAKES_UPLOADS: Final = "manylora_takes_uploads"  # the attribute of an endpoint that does
# Bounds that no option moves.
_FIXED: Final = {MAX_BODY_BYTES, MAX_FILE_BYTES + MAX_FORM_BYTES, MAX_PART_BYTES + MAX_FORM_BYTES}
_BODY_LIMIT: Final = "manylora.body_limit"  # the entry of an ASGI scope with the bytes its body may have


class HeadAsGet:
    """Middleware that answers HEAD like GET, without the body. Every GET route may be asked so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class TrailingSlash:
    """Middleware that takes one slash off the end of a path, so that both spellings reach the same route.

    Clients are not redirected: many of them repeat a POST without its body then, or drop their key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, root = scope["path"], scope.get("root_path", "")
            if path.endswith("/") and len(path) > len(root) + 1:
                scope = {**scope, "path": path[:-1]}
        await self.app(scope, receive, send)


class RequestId:
    """Middleware that gives every answer an ``x-request-id``: the client's own, or a new one.

    Anthropic's clients read it in ``request-id``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}"
        scope[REQUEST_ID] = request_id
        headers = id_headers(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        token = CURRENT_REQUEST.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            CURRENT_REQUEST.reset(token)


class IgnoredFields:
    """Middleware that names the fields of a request that did nothing in a header of its answer.

    Headers that the guard wants in it, such as a tenant's limits, are added as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        names: list[str] = []
        scope[IGNORED_FIELDS] = names

        async def send_with_names(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if names:
                    headers[IGNORED_FIELDS_HEADER] = _names_header(names)
                if ADDED_HEADERS in scope:
                    headers.update(scope[ADDED_HEADERS]())
            await send(message)

        await self.app(scope, receive, send_with_names)


def _names_header(names: list[str]) -> str:
    """The names without repetition, in order; what a header can't hold is percent-encoded."""
    distinct = list(dict.fromkeys(names))
    shown = [quote(name, safe="[]._-") for name in distinct[:MAX_NAMED_FIELDS]]
    return ", ".join(shown + ["..."] * (len(distinct) > MAX_NAMED_FIELDS))


def takes_uploads(endpoint: Endpoint) -> Endpoint:
    """Declare that a route takes files, which have a bound of their own (--max-upload-bytes)."""
    return _takes(sys.maxsize)(endpoint)


def takes_file(at_most: int) -> Callable[[Endpoint], Endpoint]:
    """Declare that a route takes a file in a form, of ``at_most`` bytes; fewer by --max-upload-bytes."""
    return _takes(at_most + MAX_FORM_BYTES)


def _takes(at_most: int) -> Callable[[Endpoint], Endpoint]:
    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _TAKES_UPLOADS, at_most)
        return endpoint

    return declare


class BodySize:
    """A dependency of the application, after the guard: refuses bodies by the length they declare.

    What the matched route takes decides the bound; :class:`BodyLimit` holds the bytes that come to it.
    """

    def __init__(self, upload_limit: int) -> None:
        self._upload_limit = upload_limit

    async def __call__(self, request: Request) -> None:
        """Find the bound of this request's body.

        Raises:
            BodyTooLarge: the declared length exceeds it.
        """
        at_most = getattr(request.scope.get("endpoint"), _TAKES_UPLOADS, 0)
        is_upload = at_most and not is_json(request.headers.get("content-type", ""))
        limit = min(self._upload_limit, at_most) if is_upload else MAX_BODY_BYTES
        request.scope[_BODY_LIMIT] = limit
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > limit:
            raise _too_large(limit)


class BodyLimit:
    """Middleware that stops reading a body once more bytes have come than the request may have."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = 0

        async def receive_bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            limit: int = scope.get(_BODY_LIMIT, MAX_BODY_BYTES)
            if seen > limit:
                raise _too_large(limit)  # surfaces in the route that reads the body
            return message

        await self.app(scope, receive_bounded, send)


def _too_large(limit: int) -> BodyTooLarge:
    option = "" if limit in _FIXED else " (--max-upload-bytes)"
    return BodyTooLarge(f"The request body is larger than {limit} bytes{option}")


class Unpacking:
    """Middleware that gives routes the bodies as they were before they were packed.

    Put it around what bounds bodies, which then counts what comes out; ``limit`` bounds what goes in. Faults
    are raised where the body is read, so that keys are checked before.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self._limit = limit  # bytes
        self._unpackers = unpackers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _encoding(scope) if scope["type"] == "http" else ""
        if encoding:
            headers = MutableHeaders(raw=list(scope["headers"]))
            for name in ("content-encoding", "content-length"):
                del headers[name]
            scope = {**scope, "headers": headers.raw}
            receive = self._receiving(encoding, receive)
        await self.app(scope, receive, send)

    def _receiving(self, encoding: str, receive: Receive) -> Receive:
        make = self._unpackers.get(encoding)
        messages = None if make is None else unpacked(receive, make(), self._limit)

        async def receive_unpacked() -> Message:
            if messages is None:
                known = ", ".join(name for name in self._unpackers if not name.startswith("x-"))
                raise UnknownEncoding(
                    f"A body with Content-Encoding {encoding[:100]!r} can't be read here; known are {known}",
                    accepted=known,
                )
            message = await anext(messages, None)
            return await receive() if message is None else message

        return receive_unpacked


def _encoding(scope: Scope) -> str:
    """The encoding of a body; "" for none. Several are one text with commas, that nothing unpacks."""
    names = ",".join(Headers(scope=scope).getlist("content-encoding")).lower().split(",")
    return ", ".join(name for name in map(str.strip, names) if name not in {"", "identity"})
