"""Listens where ``/metrics`` has an address of its own, beside the server."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from manylora.server.api.connections.connections import Connections, connection_limits
from manylora.server.api.connections.protocol import bounded_protocol
from manylora.server.cli.http_server import HttpServer
from manylora.server.cli.listening import bound
from manylora.server.options.settings import Settings

_CONNECTIONS = 256  # at a time
_END_SECONDS = 1.0  # that a scrape gets to finish


@contextmanager
def metrics_listener(settings: Settings) -> Iterator[socket.socket | None]:
    """A socket that is bound for it, if there is to be one.

    Raises:
        ConfigError: there is no such address here, or it is taken.
    """
    if settings.metrics_port is None:
        yield None
        return
    host = settings.host if settings.metrics_host is None else settings.metrics_host
    with bound(host, settings.metrics_port, "--metrics-host", "--metrics-port") as listener:
        yield listener


@asynccontextmanager
async def answering_metrics(
    application: FastAPI, settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Answer there until the block ends."""
    limits = connection_limits(settings, _CONNECTIONS)
    config = uvicorn.Config(
        application,
        lifespan="off",
        http=bounded_protocol(Connections(limits)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    config.load()
    server = HttpServer(config, lambda: None, _END_SECONDS, tls, limits.head)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    try:
        yield
    finally:
        await server.shutdown([listener])
