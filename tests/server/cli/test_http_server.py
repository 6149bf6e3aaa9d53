"""The end of an HTTP server as its clients see it, however little of their requests it had read by then."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from manylora.server.api.connections.connections import Connections, connection_limits
from manylora.server.api.connections.interruption import Interruptible
from manylora.server.api.connections.protocol import bounded_protocol
from manylora.server.cli.http_server import HttpServer
from manylora.server.cli.listening import listening
from manylora.server.cli.serve import event_loop_factory
from manylora.server.options.settings import Settings

LOOPS = {"asyncio": asyncio.new_event_loop, "usual": event_loop_factory()}
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n12345678"
CLIENTS = {  # what one of each kind has sent
    "whole": REQUEST,
    "unfinished": REQUEST[:-3],
    "half a head": REQUEST[:20],
    "silent": b"",
}


async def _unending(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def _end_after(app: ASGIApp, arrive: Callable[[int], None]) -> None:
    """A server that is told to end while ``arrive``, which is given its port, holds its loop up."""
    settings = Settings(port=0)
    protocol = bounded_protocol(Connections(connection_limits(settings)))
    config = uvicorn.Config(app, lifespan="off", http=protocol, ws="none", log_config=None)

    def on_ready() -> None:
        arrive(listener.getsockname()[1])
        server.should_exit = True

    with listening(settings) as listener:
        server = HttpServer(config, on_ready, 0.0, None, 5.0)
        await server.serve(sockets=[listener])


def _received(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


@pytest.mark.parametrize("loop", LOOPS)
def test_who_came_before_the_end_is_told(loop: str) -> None:
    """Even if nobody had accepted the connection yet: it is answered, or closed, and never reset."""
    with ExitStack() as stack, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        clients: list[tuple[str, socket.socket]] = []

        def arrive(port: int) -> None:
            for kind, sent in [*CLIENTS.items()] * 10:
                client = socket.create_connection(("127.0.0.1", port), timeout=10)
                clients.append((kind, stack.enter_context(client)))
                client.sendall(sent)

        runner.run(_end_after(Interruptible(_unending), arrive))
        for kind, client in clients:
            answer = _received(client)
            told = answer.startswith(b"HTTP/1.1 503 ") and b"server_stopping" in answer
            assert told if kind in {"whole", "unfinished"} else not answer, (kind, answer)
