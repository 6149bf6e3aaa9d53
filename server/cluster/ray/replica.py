"""A replica: one whole server without its listener, in a process that Ray started."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import ray
from ray import serve
from transformers.utils.logging import disable_progress_bar

from manylora.adapters.base_models.catalog import resolve_model
from manylora.server.api.access.logging_setup import configure_logging
from manylora.server.api.app import create_app
from manylora.server.api.connections.interruption import Interruptible
from manylora.server.assembly import build_service
from manylora.server.cluster import replicas_route
from manylora.server.cluster.asgi_call import AsgiCall
from manylora.server.cluster.ray.call import Call
from manylora.server.cluster.replica_state import ReplicaState
from manylora.server.errors import EngineDead
from manylora.server.options.settings import Settings

logger = logging.getLogger(__name__)

_GONE_REMEMBERED = 10_000  # calls whose clients had gone before they came


class Replica:
    """Answers calls by the routes that a single server has."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        configure_logging(settings)
        disable_progress_bar()
        context = serve.get_replica_context()
        self._name: str = context.replica_id.unique_id
        self._root_path = settings.root_path.rstrip("/")
        directory = await asyncio.to_thread(resolve_model, settings.model, settings.data_dir)
        self._service = await asyncio.to_thread(build_service, settings, directory)
        gc.collect()
        gc.freeze()
        app = create_app(self._service)
        app.include_router(replicas_route.router)
        self._state = app.state.replica = ReplicaState(
            self._service, self._name, ray.get_runtime_context().get_node_id()
        )
        self._app = Interruptible(app)
        self._running: dict[str, AsgiCall] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._lifespan: AbstractAsyncContextManager[object] | None = app.router.lifespan_context(app)
        await self._lifespan.__aenter__()  # until Ray Serve ends the replica

    async def __del__(self) -> None:  # Ray Serve awaits it, once requests have ended
        lifespan, self._lifespan = getattr(self, "_lifespan", None), None
        if lifespan is not None:
            await lifespan.__aexit__(None, None, None)

    async def answer(self, call: Call) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The ASGI messages that answer a request, as many together as there are."""
        assert call.request is not None
        if call.key in self._gone:
            return
        running = self._running[call.key] = AsgiCall(self._app, call.request, self._root_path)
        try:
            async with aclosing(running.batches()) as batches:
                async for batch in batches:
                    yield [dict(message) for message in batch]
        finally:
            del self._running[call.key]

    async def repeat(self, call: Call) -> list[dict[str, Any]]:
        """What the replica answers to what another has done; nothing if it is that one."""
        if call.target == self._name:
            return []
        return [message async for batch in self.answer(call) for message in batch]

    async def hang_up(self, call: Call) -> None:
        """The client of a call is gone: what runs for it ends, and if it is still to come it won't begin."""
        if call.target != self._name:
            return
        running = self._running.get(call.key)
        if running is not None:
            running.hang_up()
            return
        self._gone[call.key] = None
        if len(self._gone) > _GONE_REMEMBERED:
            self._gone.popitem(last=False)

    async def prefetch(self, call: Call) -> None:
        """Bring in the adapters that a call names, if there is room."""
        if call.target == self._name:
            await self._state.prefetch(call.asked.members)

    async def exposition(self) -> tuple[str, str]:
        """The replica's name and its metrics, as text."""
        text, _ = await asyncio.to_thread(self._service.metrics.exposition)
        return self._name, text.decode()

    async def shown(self) -> dict[str, Any]:
        """The replica as operators see it."""
        return self._state.shown()

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers choose by; Ray Serve asks for it now and then."""
        return self._state.routing_stats()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of replicas is chosen by."""
        return self._state.load()

    def check_health(self) -> None:
        """Raise if the replica has to be replaced."""
        if not self._service.engine.alive:
            raise EngineDead("the engine has stopped")
