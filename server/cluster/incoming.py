"""Reads a request completely, within bounds, before anybody is asked to answer it."""

from __future__ import annotations

from starlette.types import Receive, Scope

from manylora.server.cluster.asgi_call import RawRequest
from manylora.server.errors import BodyTooLarge


class Hung(Exception):
    """The client was gone before its request was complete."""


async def read_request(scope: Scope, receive: Receive, limit: int) -> RawRequest:
    """The request of an ASGI scope.

    Raises:
        BodyTooLarge: its body has more than ``limit`` bytes.
        Hung: the client has hung up.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Hung
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > limit:
            raise BodyTooLarge(f"The body has more than {limit} bytes")
    client = scope.get("client")
    return RawRequest(
        method=scope["method"],
        path=scope["path"],
        raw_path=scope.get("raw_path") or scope["path"].encode(),
        query=scope.get("query_string", b""),
        headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
        body=b"".join(parts),
        client=None if client is None else (client[0], client[1]),
        scheme=scope.get("scheme", "http"),
        http_version=scope.get("http_version", "1.1"),
    )
