"""Requests without a client library: on a socket that a test can close, and on ASGI without a server."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Scope

from tests.support.running_server import Running


def connect(server: Running, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent and nothing was read yet."""
    url = urlsplit(server.url)
    assert url.hostname is not None
    assert url.port is not None
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return connection


class AsgiExchange:
    """One request to an ASGI application: what it sends, and a client that can hang up."""

    def __init__(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.body: bytes | None = json.dumps(body).encode()
        self.sent: list[Message] = []
        self.hung_up = asyncio.Event()
        self.hang_up_after: int | None = None  # messages

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer the request."""
        await app(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if len(self.sent) == self.hang_up_after:
            self.hung_up.set()

    @property
    def payload(self) -> bytes:
        """All bytes of the answer's body so far."""
        return b"".join(message.get("body", b"") for message in self.sent)
