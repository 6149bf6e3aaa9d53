"""HTTP as old proxies and probes speak it: bodies that end with the connection, one "connection" header."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.support.running_server import Running

REQUESTS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "probe": ("GET", "/health", None),
    "list": ("GET", "/v1/models", None),
    "file": ("GET", "/docs/swagger-ui.css", None),
    "metrics": ("GET", "/metrics", None),
    "nothing there": ("GET", "/nothing", None),
    "answer": ("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 3}),
    "stream": ("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 3, "stream": True}),
    "comparison": (
        "POST",
        "/v1/compare",
        {"targets": ["tiny", "alpha"], "prompt": "a", "max_tokens": 2, "stream": True},
    ),
    "refused stream": ("POST", "/v1/completions", {"model": "none", "prompt": "a", "stream": True}),
}


def _exchange(server: Running, name: str, version: str, *headers: str) -> tuple[list[str], bytes]:
    """The lines of the answer's head, and the bytes after it until the server closes."""
    method, path, body = REQUESTS[name]
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", "Host: x", f"Content-Length: {len(content)}", *headers]
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + content)
        received = b""
        while data := connection.recv(65536):
            received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.decode().lower().split("\r\n"), rest


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("headers", [[], ["Connection: keep-alive"], ["Expect: 100-continue"]])
def test_http_1_0(server: Running, name: str, headers: list[str]) -> None:
    head, rest = _exchange(server, name, "1.0", *headers)
    assert head[0].split()[1] in {"200", "404"}
    assert not [line for line in head if line.startswith("transfer-encoding")]
    assert [line for line in head if line.startswith("connection")] == ["connection: close"]
    lengths = [int(line.split()[1]) for line in head if line.startswith("content-length")]
    assert lengths in ([], [len(rest)])
    if name in {"stream", "comparison"}:
        assert rest.startswith(b"data: {")
        assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("name", REQUESTS)
def test_http_1_1(server: Running, name: str) -> None:
    head, rest = _exchange(server, name, "1.1", "Connection: close")
    assert [line for line in head if line.startswith("connection")] == ["connection: close"]
    if name in {"stream", "comparison"}:
        assert "transfer-encoding: chunked" in head
        assert rest.endswith(b"\r\n0\r\n\r\n")
