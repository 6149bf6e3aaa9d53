"""A server in a process of its own, that real signals reach; its engine is slow and can be made to die."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START = """
import signal, time
from manylora.server.engine.engine import Engine

advance = Engine.advance

def slow_step(engine):
    time.sleep({step_seconds})
    return advance(engine)

def die(*_):
    def fail(*_):
        raise SystemExit("the engine is killed")
    Engine.advance = Engine.fail_all = fail

Engine.advance = slow_step
signal.signal(signal.SIGUSR1, die)
from manylora.server.cli.main import main
main()
"""


@dataclass
class ServerProcess:
    """A server that is ready."""

    process: subprocess.Popen[str]
    printed: str  # until it was ready
    port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def said(self) -> str:
        """What it logged, once it has ended."""
        return self.process.communicate(timeout=60)[1]


def small_options(model: Path, data: Path) -> list[str]:
    """Options of a server that takes little of everything."""
    return [
        *("--model", str(model), "--served-model-name", "tiny", "--data-dir", str(data)),
        *("--kv-cache-memory", "16MiB", "--adapter-memory", "16MiB"),
    ]


@contextmanager
def server_process(*options: str, step_seconds: float = 0.0) -> Iterator[ServerProcess]:
    """A server process from when it is ready; whatever it is doing at the end, it is killed.

    SIGUSR1 makes its engine die in its next step.
    """
    port = ["--port", "0"] if "--uds" not in options else []
    command = [sys.executable, "-c", _START.format(step_seconds=step_seconds), "serve", *port, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            printed = until_ready(process)
            yield ServerProcess(process, printed, _port(printed))
        finally:
            process.kill()


def until_ready(process: subprocess.Popen[str]) -> str:
    """What a server prints until it is ready, the last line included.

    Raises:
        AssertionError: it ended before; with what it logged.
    """
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("curl "):
            return printed
    raise AssertionError(process.communicate()[1])


def _port(printed: str) -> int:
    address = printed.partition("Ready on ")[2].split()[0].rpartition(":")[2]
    return int(address) if address.isdecimal() else 0
