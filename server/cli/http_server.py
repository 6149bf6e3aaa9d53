"""uvicorn's server, with sockets that are bound already, and an end for every request."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from manylora.server.api.connections.interruption import END_SECONDS

logger = logging.getLogger(__name__)

ARRIVED_SECONDS = 1.0  # at most, to take what came before the end
_QUIET_TURNS = 4  # of the event loop, from a connection's being accepted to its bytes' being read


class HttpServer(uvicorn.Server):
    """An HTTP server that says when it accepts requests, and ends all of them properly."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        shutdown_timeout: float,
        tls: ssl.SSLContext | None,
        handshake_timeout: float,
    ) -> None:
        """``shutdown_timeout`` is how many seconds running requests get to finish."""
        super().__init__(config)
        self._on_ready = on_ready
        self._shutdown_timeout = shutdown_timeout
        self._tls = tls
        self._handshake_timeout = handshake_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn's own knows nothing of Unix sockets that are bound, and of time for handshakes."""
        self.servers = [await self._listen(listener) for listener in sockets or []]
        self.started = True
        self._on_ready()

    async def _listen(self, listener: socket.socket) -> asyncio.base_events.Server:
        loop = asyncio.get_running_loop()
        create: Callable[..., Any] = loop.create_server
        if listener.family == socket.AF_UNIX:
            create = loop.create_unix_server
        server: asyncio.base_events.Server = await create(
            self._connection,
            sock=listener,
            ssl=self._tls,
            backlog=self.config.backlog,
            ssl_handshake_timeout=None if self._tls is None else self._handshake_timeout,
        )
        return server

    def _connection(self) -> asyncio.Protocol:
        protocol: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return protocol(config=self.config, server_state=self.server_state, app_state={})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, let those that run finish while they may, then end what is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVED_SECONDS):
                await self._take_arrived()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._shutdown_timeout):
                await super().shutdown(sockets)
        await self._end_requests()

    async def _take_arrived(self) -> None:
        """Accept the connections, and read the bytes, that are here already.

        The kernel resets a connection that is closed before its bytes are read, and every one that waits to
        be accepted when its listener is closed: who asked before the end would not be told.
        """
        quiet = 0
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = 0 if self._has_arrived() else quiet + 1

    def _has_arrived(self) -> bool:
        poll = select.poll()
        for server in self.servers:
            for listener in server.sockets:
                poll.register(listener.fileno(), select.POLLIN)
        for connection in cast("set[HttpToolsProtocol]", self.server_state.connections):
            # One whose request is being answered is not closed, and may not be read from for a while.
            if connection.cycle is None or connection.cycle.response_complete:
                transport = connection.transport
                client = None if transport.is_closing() else transport.get_extra_info("socket")
                if client is not None and client.fileno() >= 0:
                    poll.register(client.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def _end_requests(self) -> None:
        """Cancel the tasks of all requests, and let their clients take what they are told."""
        await asyncio.sleep(0)  # a task that has not begun could not say anything
        running = set(self.server_state.tasks)
        if running:
            logger.warning("%d requests are ended: the server is stopping", len(running))
        for task in running:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * END_SECONDS):
                while self.server_state.tasks or self.server_state.connections:
                    await asyncio.sleep(0.02)
