"""Connections that are never finished: each kind is closed in time, and none of them keeps others out."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.api.connections.connections import RESERVED, ConnectionLimits, Connections, sender_of
from manylora.server.api.connections.pace import Pace
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of

LIMIT = 200  # connections
LIMITS = {
    "max_connections": LIMIT,
    "head_timeout": 1.0,
    "body_timeout": 1.0,
    "write_timeout": 1.0,
    "keep_alive_timeout": 2.0,
    "min_transfer_rate": 1000,
}
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps({"model": "tiny", "prompt": "x" * 4000}).encode()

# What is sent, then what is sent again and again.
UNFINISHED: dict[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "half a line": (b"GET /hea", b""),
    "half a head": (GET[:-2], b""),
    "a dripping head": (GET[:-2], b"a: b\r\n"),
    "empty lines": (b"", b"\r\n"),
    "a stalled body": (POST + b"Content-Length: 4000\r\n\r\n" + BODY[:100], b""),
    "a dripping body": (POST + b"Content-Length: 400000\r\n\r\n", b"x"),
    "a stalled chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nfff\r\nabc", b""),
    "dripping chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "no last chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", b""),
    "no body at all": (POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", b""),
    "idle": (HEALTH, b""),
    "idle, then half a head": (HEALTH + GET[:-2], b""),
    "idle, with empty lines": (HEALTH, b"\r\n"),
    "a body after its answer": (b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n", b"x"),
}


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    with serving(service_of(tmp_path_factory.mktemp("data"), model, adapters, **LIMITS)) as running:
        yield running


def _connect(server: Running, sender: str = "127.0.0.1") -> socket.socket:
    port = int(server.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(sender, 0))


def _ask(server: Running, request: bytes = HEALTH, sender: str = "127.0.0.1") -> bytes:
    with _connect(server, sender) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def _until_closed(connection: socket.socket, drip: bytes = b"") -> bytes:
    """What arrives until the server closes; ``drip`` is sent ten times a second."""
    connection.settimeout(0.1)
    received, deadline = b"", monotonic() + 20
    with suppress(ConnectionError):
        while monotonic() < deadline:
            try:
                data = connection.recv(65536)
            except TimeoutError:
                connection.sendall(drip)
                continue
            if not data:
                return received
            received += data
        raise AssertionError("it was never closed")
    return received


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNFINISHED)
def test_what_is_never_finished_is_closed(bounded: Running, kind: str) -> None:
    begin, drip = UNFINISHED[kind]
    with _connect(bounded) as connection:
        connection.sendall(begin)
        received = _until_closed(connection, drip)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", received)
    expected = {
        "silent": [],
        "empty lines": [],
        "idle": [b"200"],
        "idle, with empty lines": [b"200"],
        "idle, then half a head": [b"200", b"408"],
        "no body at all": [b"100", b"408"],
        "a body after its answer": [b"404"],
    }.get(kind, [b"408"])
    assert statuses == expected or (drip and not received)  # a reset may overtake the answer
    if statuses[-1:] == [b"408"]:
        assert json.loads(received.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


@pytest.mark.slow
def test_a_reader_that_takes_nothing_is_closed(bounded: Running) -> None:
    with _connect(bounded) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        bounded.wait_until_idle()
        _wait(lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _is_reset(connection))


def _is_reset(connection: socket.socket) -> bool:
    try:
        connection.send(b"\r\n")
    except ConnectionError:
        return True
    return False


def _wait(condition: Callable[[], object]) -> None:
    deadline, pause = monotonic() + 20, threading.Event()
    while not condition():
        assert monotonic() < deadline, "it never happened"
        pause.wait(0.05)


@pytest.mark.sweep
@pytest.mark.slow
def test_who_is_slow_but_goes_on_is_served(bounded: Running) -> None:
    """A body that takes several times the time limits, and a connection that is used now and then."""
    pause = threading.Event()
    with _connect(bounded) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(BODY))
        for start in range(0, len(BODY), 250):
            connection.sendall(BODY[start : start + 250])
            pause.wait(0.15)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            pause.wait(1.2)
            connection.sendall(HEALTH)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "half a head", "a stalled body", "no last chunk", "idle"])
def test_health_answers_under_a_flood(bounded: Running, kind: str) -> None:
    with ExitStack() as opened:
        for number in range(3 * LIMIT):
            connection = opened.enter_context(_connect(bounded))
            with suppress(ConnectionError):
                connection.sendall(UNFINISHED[kind][0])
            if number % 50 == 0:
                assert _ask(bounded).startswith(b"HTTP/1.1 200")
        assert _ask(bounded).startswith(b"HTTP/1.1 200")
        assert _ask(bounded, sender="127.0.0.2").startswith(b"HTTP/1.1 200")
    _wait(lambda: _ask(bounded, GET).startswith(b"HTTP/1.1 200"))


@pytest.mark.slow
def test_one_address_leaves_room_for_others(bounded: Running) -> None:
    with ExitStack() as opened:
        for _ in range(LIMIT // 2):
            connection = opened.enter_context(_connect(bounded))
            connection.sendall(POST + b"Content-Length: 9\r\n\r\n")
        refused = _ask(bounded, GET)
        assert refused.startswith(b"HTTP/1.1 503")
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        assert b"connection: close" in refused
        for path in (b"/health", b"/ready"):
            assert _ask(bounded, GET.replace(b"/v1/models", path)).startswith(b"HTTP/1.1 200")
        for hostile in (
            b"/health/",
            b"/health%0a",
            b"//health",
            b"/v1/models?/health",
            b"/health/../x",
        ):
            assert _ask(bounded, GET.replace(b"/v1/models", hostile)).startswith(b"HTTP/1.1 503")
        assert _ask(bounded, GET, sender="127.0.0.2").startswith(b"HTTP/1.1 200")


class _Connection:
    def __init__(self) -> None:
        self.dropped = False

    def check(self, now: float) -> None:
        """Nothing is too slow here."""

    def drop(self) -> None:
        """Remember it."""
        self.dropped = True


EVENTS = st.lists(st.tuples(st.sampled_from(["come", "busy", "wait", "go"]), st.integers(0, 9)), max_size=300)


@given(EVENTS, st.integers(1, 6), st.integers(1, 6))
async def test_bounds_hold_whatever_comes_and_goes(
    events: list[tuple[str, int]], total: int, per_address: int
) -> None:
    limits = ConnectionLimits(total, per_address, head=9, body=9, write=9, idle=9, rate=1)
    room = Connections(limits)
    admitted: dict[_Connection, str] = {}
    reserved: list[_Connection] = []
    for kind, number in events:
        alive = [c for c in admitted if not c.dropped]
        if kind == "come":
            new, sender = _Connection(), f"10.0.0.{number % 3}"
            if room.enter(new, sender):
                admitted[new] = sender
            else:
                reserved.append(new)
                full = sum(admitted[c] == sender for c in alive) >= per_address or len(alive) >= total
                assert full
        elif alive:
            chosen = alive[number % len(alive)]
            {"busy": room.busy, "wait": room.waits, "go": room.leave}[kind](chosen)
            if kind == "go":
                del admitted[chosen]
        alive = [c for c in admitted if not c.dropped]
        assert len(alive) <= total
        assert all(sum(admitted[c] == s for c in alive) <= per_address for s in admitted.values())
        assert sum(not c.dropped for c in reserved) <= RESERVED
        assert len(room) == len(alive) + sum(not c.dropped for c in reserved)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 5000)), max_size=50))
def test_pace(steps: list[tuple[float, int]]) -> None:
    """Whoever keeps the rate without a long gap is never too slow; whoever stops always is."""
    pace, now = Pace(100.0), 100.0
    for seconds, nbytes in steps:
        now += seconds
        assert not pace.is_too_slow(now, patience=6, rate=0.001)
        pace.add(nbytes, now)
    assert pace.is_too_slow(now + 6.1, patience=6, rate=0.001)
    total = sum(nbytes for _, nbytes in steps)
    assert pace.is_too_slow(100 + 6.1 + total / 1000, patience=6, rate=1000)


@pytest.mark.parametrize(
    ("host", "sender"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("no address", "no address"),
    ],
)
def test_senders(host: str, sender: str) -> None:
    assert sender_of(host) == sender
