"""``manylora serve --ray``: starts Ray if it has to, runs the application on it, and ends both."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray import serve
from rich.console import Console

from manylora.server.cluster.ray.application import APPLICATION, build
from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings


def run_on_ray(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: an option can't be had on Ray Serve, or there is no such cluster.
    """
    _refuse(settings)
    console = Console(highlight=False)
    with _cluster(settings), _ending() as ended:  # in this order: Ray has handlers of its own
        serve.start(proxy_location="EveryNode", http_options=_http_options(settings))
        console.print(f"Starting {settings.replicas} replicas of {settings.model_name} on Ray", style="dim")
        serve.run(build(settings), name=APPLICATION, route_prefix="/")
        scheme = "http" if settings.ssl_certfile is None else "https"
        console.print(f"\nReady on [bold]{scheme}://{settings.host}:{settings.port}[/bold]\n", soft_wrap=True)
        ended.wait()
        serve.shutdown()


def _refuse(settings: Settings) -> None:
    if settings.uds is not None:
        raise ConfigError("--uds: Ray Serve listens on an address")
    if settings.port == 0:
        raise ConfigError("--port 0: Ray Serve needs a port")
    if settings.metrics_port is not None:
        raise ConfigError("--metrics-port: on Ray Serve the metrics of all replicas are at /metrics")
    if settings.ssl_certfile is not None and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ConfigError("--ssl-certfile: with RAY_SERVE_ENABLE_HA_PROXY nothing speaks TLS on Ray Serve")
    if settings.registry_scope != "registry":
        raise ConfigError("--registry-scope: replicas on Ray Serve share their registry")


def _http_options(settings: Settings) -> dict[str, Any]:
    password = settings.ssl_keyfile_password
    return {
        "host": settings.host,
        "port": settings.port,
        "keep_alive_timeout_s": int(settings.keep_alive_timeout),
        "ssl_certfile": None if settings.ssl_certfile is None else str(settings.ssl_certfile),
        "ssl_keyfile": None if settings.ssl_keyfile is None else str(settings.ssl_keyfile),
        "ssl_keyfile_password": None if password is None else password.get_secret_value(),
    }


@contextmanager
def _cluster(settings: Settings) -> Iterator[None]:
    """The Ray cluster that is named, or one of this machine alone."""
    try:
        ray.init(address=settings.ray_address or "local", include_dashboard=False, log_to_driver=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray-address {settings.ray_address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """Set once the process is told to end. While replicas start that ends it at once."""
    event = threading.Event()

    def end(number: int, _: FrameType | None) -> None:
        if event.is_set():
            raise SystemExit(128 + number)
        event.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
