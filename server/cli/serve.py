"""Runs a server from its settings: model, service, application, HTTP, and the end of all of them."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import shlex
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.errors import StoreError
from manylora.server.api.access.logging_setup import configure_logging
from manylora.server.api.connections.connections import Connections, connection_limits
from manylora.server.api.connections.interruption import Interruptible
from manylora.server.api.connections.protocol import bounded_protocol
from manylora.server.cli.http_server import HttpServer
from manylora.server.cli.listening import listening, room_for_connections, tls_context
from manylora.server.cli.metrics_address import answering_metrics, metrics_listener
from manylora.server.cli.output import DEAD
from manylora.server.errors import ConfigError, EngineDead
from manylora.server.names.view import called
from manylora.server.options.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

    from manylora.server.service import Service

BACKLOG = 2048  # connections the kernel holds until they are accepted
LAST_RESORT = 15.0  # seconds after the time that running requests get


def run_server(settings: Settings, progress: Progress) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is running within ``settings.shutdown_timeout``.

    A signal during start-up ends the process at once with status 128 + its number.

    Raises:
        ConfigError: the address can't be listened on, or an option does not fit model or machine.
        ModelRefused: the model can't be served.
        AdapterError: there is no such model, or an adapter given in the settings can't be loaded.
    """
    configure_logging(settings)
    for name, path in settings.adapter.items():
        if not path.is_dir():  # said now rather than after the model is loaded
            raise ConfigError(f"--adapter {name}={path}: no such directory")
    tls = tls_context(settings)
    with (
        StartUp(hang_up=settings.tenants is None) as start_up,
        listening(settings) as listener,
        metrics_listener(settings) as for_metrics,
    ):
        check_storage(settings)
        directory = resolve_model(settings.model, settings.data_dir, progress)
        Console(stderr=True, highlight=False).print(f"Loading {settings.model_name} from {directory}")
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415  (brings torch: seconds)

        from manylora.server.api.app import create_app  # noqa: PLC0415
        from manylora.server.assembly import build_service  # noqa: PLC0415
        from manylora.server.threads import call_in_thread  # noqa: PLC0415

        disable_progress_bar()
        service = call_in_thread(build_service, settings, directory)
        gc.collect()
        gc.freeze()  # torch's millions of objects stay: collecting garbage need not visit them again
        application = create_app(service)

        from manylora.server.api.tenants.apply import apply_again  # noqa: PLC0415

        def on_ready() -> None:
            loop, file = asyncio.get_running_loop(), settings.tenants
            start_up.done(
                None
                if file is None
                else lambda: asyncio.run_coroutine_threadsafe(apply_again(service, file), loop)
            )
            announce(service, listener, Console(highlight=False), for_metrics)

        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(serve(application, settings, listener, tls, on_ready, for_metrics=for_metrics))


def check_storage(settings: Settings) -> None:
    """Open the adapter store and the registry once, so that their faults are told before minutes of loading.

    Raises:
        ConfigError: one of them can't be used; names the option, and no password.
    """
    from manylora.adapters.registry.registry import Registry  # noqa: PLC0415  (brings SQLAlchemy)
    from manylora.adapters.store.store import RevisionStore  # noqa: PLC0415

    try:
        store = RevisionStore(settings.data_dir / "adapters")
    except StoreError as error:
        raise ConfigError(f"--data-dir: {error}") from error
    with store:
        try:
            with Registry(settings.registry) as registry:
                registry.check_store(store.identity)
        except StoreError as error:
            option = "--data-dir" if settings.registry_url is None else "--registry-url"
            raise ConfigError(f"{option}: {error}") from error


async def serve(
    application: FastAPI,
    settings: Settings,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    on_ready: Callable[[], None],
    *,
    for_metrics: socket.socket | None = None,
) -> None:
    """Start the service, accept requests until a signal, drain, stop the service.

    ``for_metrics`` is bound to the address at which metrics are told by themselves, if they are.

    The application's lifespan is entered here instead of by uvicorn, so that what goes wrong in it
    arrives as the exception it is.
    """
    limits = connection_limits(settings, room_for_connections(settings.max_connections))
    config = uvicorn.Config(
        Interruptible(application),
        lifespan="off",
        http=bounded_protocol(Connections(limits)),
        ws="none",
        log_config=None,
        access_log=False,  # it logs queries; the application has its own
        server_header=False,
        proxy_headers=False,
        root_path=settings.root_path.rstrip("/"),
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(limits.idle),
    )
    engine = application.state.service.engine
    async with application.router.lifespan_context(application), AsyncExitStack() as stack:
        if for_metrics is not None:
            from manylora.server.api.metrics_app import create_metrics_app  # noqa: PLC0415  (as the other)

            metrics = create_metrics_app(application.state.service)
            await stack.enter_async_context(answering_metrics(metrics, settings, for_metrics, tls))
        server = HttpServer(config, on_ready, settings.shutdown_timeout, tls, limits.head)
        ending = asyncio.create_task(end_with_engine(engine.died, server, settings.shutdown_timeout))
        try:
            await server.serve(sockets=[listener])
        finally:
            ending.cancel()
    if engine.died.is_set():
        raise EngineDead("the engine has stopped; the log says why. The process has to be started again")


async def end_with_engine(died: asyncio.Event, server: HttpServer, patience: float) -> None:
    """Stop accepting requests once the engine has ended by itself, and see to it that the process ends.

    A thread may wait for a device that never answers: what is not over some time after ``patience`` seconds,
    which running requests get, is not waited for.
    """
    await died.wait()
    last_resort = threading.Timer(patience + LAST_RESORT, os._exit, (DEAD,))
    last_resort.daemon = True
    last_resort.start()
    server.should_exit = True


class StartUp:
    """Ends the process on a signal until :meth:`done`; from then on uvicorn's handlers do it gracefully.

    SIGHUP, of a terminal that is closed, does what SIGTERM does, unless it is ignored (``nohup``). A server
    that can read something again does that instead.

    uvicorn raises the signal again when it has shut down. It comes back to this handler, which lets it
    pass, so that the process ends with status 0.
    """

    def __init__(self, *, hang_up: bool = True) -> None:
        """``hang_up`` says whether SIGHUP is that of a terminal."""
        self._starting = True
        self._hang_up = hang_up
        self._reload: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StartUp:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            ignored = signal.getsignal(number) is not signal.SIG_DFL
            if number != signal.SIGHUP or not (self._hang_up and ignored):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def done(self, reload: Callable[[], object] | None = None) -> None:
        """The server is up: leave signals to uvicorn, and do ``reload`` on SIGHUP."""
        self._starting = False
        self._reload = reload

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._starting:
            raise SystemExit(128 + number)
        if number == signal.SIGHUP and self._reload is not None:
            self._reload()
        elif number == signal.SIGHUP:
            signal.raise_signal(signal.SIGTERM)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """A function that makes the server's event loop; None for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:  # not on every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def announce(
    service: Service, listener: socket.socket, console: Console, for_metrics: socket.socket | None = None
) -> None:
    """Print what is being served, where, and a command that streams an answer."""
    settings, about = service.config, service.description
    view, serving = service.pods.view, service.adapters.views.serving()
    names = [called(each.name, view) for each in serving if view is None or view.visible(each.name)]
    table = Table.grid(padding=(0, 2))
    bits = "" if about["quantization"] == "none" else f", {about['quantization']} weights"
    model = f"{service.model_name} ({about['architecture']}), {about['dtype']} on {about['device']}{bits}"
    table.add_row("base model", model)
    table.add_row("decoder", f"{about['decoder']}, {about['kernels']} kernels")
    table.add_row("KV cache", f"{about['kv_blocks']} blocks, context of {service.max_model_len} tokens")
    table.add_row("adapters", ", ".join(names) or "none")
    console.print(table)
    if for_metrics is not None:
        host, port = for_metrics.getsockname()[:2]
        scheme = "http" if settings.ssl_certfile is None else "https"
        where = base_url(host, port).replace("http", scheme, 1)
        console.print(f"\nMetrics on [bold]{where}/metrics[/bold]", soft_wrap=True)
    url = "http://localhost" if settings.uds else base_url(settings.host, listener.getsockname()[1])
    if settings.ssl_certfile is not None:
        url = url.replace("http", "https", 1)
    place = f"{settings.uds}" if settings.uds else url
    docs = "/docs" if settings.uds else f"{url}/docs"
    console.print(f"\nReady on [bold]{place}[/bold]  (API docs: {docs}). Try:\n", soft_wrap=True)
    # Never wrapped, so that it can be copied.
    console.print(
        curl_line(url, names[0] if names else service.model_name, bool(settings.api_key), settings.uds),
        soft_wrap=True,
        markup=False,
        style="green",
    )


def base_url(host: str, port: int) -> str:
    """The URL at which a client on this machine reaches the server."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def curl_line(url: str, model: str, needs_key: bool, uds: Path | None = None) -> str:
    """A shell command that streams an answer from ``model``; the key is taken from ``MANYLORA_API_KEY``."""
    place = "" if uds is None else f"--unix-socket {shlex.quote(str(uds))} "
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": "Where should I go on holiday?"}],
    }
    key = ' -H "Authorization: Bearer $MANYLORA_API_KEY"' if needs_key else ""
    return (
        f"curl -N {place}{url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d {shlex.quote(json.dumps(body))}"
    )
