"""A real server on a real port, in a thread of the test's process, so that its parts can be looked at."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import httpx
import openai
import uvicorn

from manylora.server.api.app import create_app
from manylora.server.api.connections.connections import Connections, connection_limits
from manylora.server.api.connections.protocol import bounded_protocol
from manylora.server.assembly import build_service
from manylora.server.options.settings import Settings
from manylora.server.service import Service

T = TypeVar("T")

PATIENCE = 30.0  # seconds after which something that should have happened has not


class _Server(uvicorn.Server):
    """A uvicorn server that says when it listens, and on which loop it runs."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.listening.set()


@dataclass
class Running:
    """A started server that answers at ``url``, and the service behind it."""

    service: Service
    server: _Server
    url: str
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, without retries, so that a test sees the first answer."""
        key = repr(sorted(options.items()))
        if key not in self.clients:
            defaults = {**self._defaults, "http_client": openai.DefaultHttpxClient(verify=False)}
            self.clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", **{**defaults, **options})
        return self.clients[key]

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """OpenAI's asynchronous client, without retries."""
        defaults = {**self._defaults, "http_client": openai.DefaultAsyncHttpxClient(verify=False)}
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", **{**defaults, **options})

    @property
    def _defaults(self) -> dict[str, Any]:
        return {"api_key": "none", "max_retries": 0}

    def http(self, **options: Any) -> httpx.Client:
        """A plain HTTP client for the server's paths.

        No client reads the system's certificates, which nothing here is checked with and which take 25 ms.
        """
        return httpx.Client(base_url=self.url, timeout=PATIENCE, verify=False, **options)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the server's own loop."""
        assert self.server.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.server.loop).result(PATIENCE)

    @property
    def references(self) -> int:
        """References to revisions that requests hold."""
        return self.service.adapters.residency.references.total

    def wait_until_idle(self) -> None:
        """Wait until nothing is open, held or left to be freed, then check that everything balances.

        Raises:
            AssertionError: something still runs after a long while, or is leaked.
        """
        self.call(self._idle())

    async def _idle(self) -> None:
        deadline = monotonic() + PATIENCE
        engine, adapters = self.service.engine, self.service.adapters
        while engine.num_open or self.service.core.has_work or not adapters.is_quiet or self.references:
            assert monotonic() < deadline, f"{engine.num_open} sequences run, or something is not freed"
            await asyncio.sleep(0.001)
        self.service.core.check()
        self.service.adapters.check()
        assert self.service.core.blocks.num_used == 0


@contextmanager
def serving(service: Service) -> Iterator[Running]:
    """Serve ``service`` until the block ends."""
    limits = connection_limits(service.config)
    config = uvicorn.Config(
        create_app(service),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        http=bounded_protocol(Connections(limits)),
        root_path=service.config.root_path.rstrip("/"),
        timeout_keep_alive=math.ceil(limits.idle),  # uvicorn's own is short on a busy processor
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        assert server.listening.wait(PATIENCE)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Running(service, server, f"http://127.0.0.1:{port}")
        try:
            yield running
        finally:
            for client in running.clients.values():
                client.close()
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def tiny_service(model: Path, data_dir: Path, **options: Any) -> Service:
    """The real service on a tiny model called ``tiny``."""
    defaults: dict[str, Any] = {
        "model": str(model),
        "served_model_name": "tiny",
        "data_dir": data_dir,
        "dtype": "fp32",
        "device": "cpu",
        "kv_cache_memory": 8 << 20,
        "adapter_memory": 4 << 20,
        "max_num_seqs": 16,
    }
    return build_service(Settings(**{**defaults, **options}), model)
