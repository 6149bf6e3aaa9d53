"""However a server ends, each request it has taken is told so: once, in the form of its route."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.server.cli.output import DEAD
from tests.support.server_process import ServerProcess, server_process, small_options
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LONG = {"ignore_eos": True, "max_tokens": 300}
MESSAGES = [{"role": "user", "content": "Go on"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES, **LONG},
    "/v1/completions": {"model": "tiny", "prompt": ["a", "b"], "n": 2, **LONG},
    "/v1/compare": {"targets": ["tiny", "tiny"], "messages": MESSAGES, **LONG},
}
STEP_SECONDS = 0.2


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, server: ServerProcess, path: str, body: dict[str, Any], *, missing: int = 0) -> None:
        """Send it, but for the last ``missing`` bytes of its body."""
        self.stream = bool(body.get("stream"))
        self._connection = server.connect()
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        self._connection.sendall(head.encode() + content[: len(content) - missing])
        self.response = http.client.HTTPResponse(self._connection)
        if self.stream:
            self.response.begin()
            assert self.response.status == 200
            self.first = self.response.readline()  # it has begun to answer

    def rest(self) -> bytes:
        """The answer to its end; raises IncompleteRead if it is cut off."""
        if not self.stream:
            self.response.begin()
        content = self.response.read()
        return self.first + content if self.stream else content

    def close(self) -> None:
        """Close the connection."""
        self.response.close()
        self._connection.close()

    def check_told(self, codes: Sequence[str]) -> None:
        """It ended with one error, the last thing that it was told."""
        content = self.rest().decode()
        if not self.stream:
            assert self.response.status == 503
            assert self.response.headers["x-request-id"]
            assert json.loads(content)["error"]["code"] in codes
            return
        assert self.response.status == 200
        events = [line.removeprefix("data: ") for line in content.splitlines() if line.startswith("data: ")]
        assert events.count("[DONE]") == 1
        assert events[-1] == "[DONE]"
        errors = [json.loads(event)["error"] for event in events[:-1] if "error" in json.loads(event)]
        assert [error["code"] in codes for error in errors] == [True]
        assert "error" in json.loads(events[-2])


def _begun(server: ServerProcess, stack: ExitStack) -> list[Exchange]:
    """Every route, streaming and not, all of them being computed; ``stack`` closes their connections."""
    plain = [*ROUTES.items()]
    streams = [(path, {**body, "stream": True}) for path, body in plain]
    requests = [stack.enter_context(closing(Exchange(server, *asked))) for asked in plain + streams]
    answers = 1 + 2 * 2 + 2  # of a chat, of two prompts with n of 2, of two targets
    wait_until(lambda: _running(server) >= 2 * answers)
    return requests


def _reading_nothing(server: ServerProcess) -> socket.socket:
    """A client that takes nothing of a large answer; it must not hold the end up."""
    connection = server.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    return connection


def _refuses(server: ServerProcess) -> bool:
    """Whether it has begun to end: it takes no connections any more."""
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def _running(server: ServerProcess) -> float:
    text = httpx.get(f"{server.url}/metrics", verify=False).text
    lines = [line for line in text.splitlines() if line.startswith("manylora_requests_running")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize(
    ("signals", "patience"),
    [
        ([signal.SIGTERM], "0.3"),
        ([signal.SIGINT, signal.SIGINT], "60"),
        ([signal.SIGHUP], "0"),
    ],
)
def test_requests_beyond_their_time_are_told(
    tiny_llama: Path, tmp_path: Path, signals: list[signal.Signals], patience: str
) -> None:
    options = [*small_options(tiny_llama, tmp_path / "data"), "--shutdown-timeout", patience]
    with server_process(*options, step_seconds=STEP_SECONDS) as server, ExitStack() as stack:
        requests = _begun(server, stack)
        unfinished = [
            stack.enter_context(closing(Exchange(server, path, body, missing=3)))
            for path, body in ROUTES.items()
        ]
        silent = stack.enter_context(server.connect())
        stack.enter_context(_reading_nothing(server))
        for number in signals:
            server.signal(number)
            wait_until(lambda: _refuses(server))  # before the next: each signal is one of its own
        for request in [*requests, *unfinished]:
            request.check_told(["server_stopping"])
        assert silent.recv(1) == b""
        stack.close()
        said = server.said()
        assert server.process.returncode == 0, said
        assert "Traceback" not in said


@pytest.mark.sweep
def test_requests_of_an_engine_that_dies_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    options = small_options(tiny_llama, tmp_path / "data")
    with server_process(*options, step_seconds=STEP_SECONDS) as server, ExitStack() as stack:
        requests = _begun(server, stack)
        server.signal(signal.SIGUSR1)
        for request in requests:
            request.check_told(["engine_dead"])
        said = server.said()  # it ends by itself, for whoever started it to start it again
        assert server.process.returncode == DEAD, said
