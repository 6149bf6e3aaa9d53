"""The application of a server without its socket, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import httpx

from manylora.server.api.access.scopes import ADMIN, OnBehalf
from manylora.server.api.app import create_app
from manylora.server.api.asking import AskedFor
from manylora.server.errors import RequestError, ServerError
from manylora.server.service import Service

T = TypeVar("T")


class InProcessServer:
    """A started service that answers this process only."""

    def __init__(self, service: Service) -> None:
        """Start the service.

        Raises:
            ConfigError: a configured adapter can't be served.
        """
        self._service = service
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="manylora", daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        try:
            self._http = self.run(self._open())
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        """Stop the service. Calling it again does nothing."""
        if self._thread.is_alive():
            try:
                self.run(self._stack.aclose())
            finally:
                self._end_loop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns, run on the service's event loop; if this is interrupted, so is the work."""
        future = asyncio.run_coroutine_threadsafe(_first_error_alone(work), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that a route answers ``body`` with. On the service's event loop.

        Raises:
            RequestError: the request is not right; ``param`` says which of its fields.
            ServerError: it can't be answered.
        """
        answer = await self._http.post(path, json=body)
        found: dict[str, Any] = answer.json()
        if answer.is_success:
            return found
        error = found["error"]
        if answer.status_code < 500:
            raise RequestError(error["message"], error["param"], error["code"])
        raise ServerError(error["message"])

    async def _open(self) -> httpx.AsyncClient:
        app = create_app(self._service, batches=False)
        await self._stack.enter_async_context(app.router.lifespan_context(app))
        application = AskedFor(app, OnBehalf(ADMIN))  # who runs the program has no key, and needs none
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://manylora", timeout=None)
        return await self._stack.enter_async_context(client)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _first_error_alone(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; of a group of errors the first is raised by itself."""
    try:
        return await work
    except* Exception as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    raise error
