"""Keys appear in no log line and no answer, wherever clients put them."""

from __future__ import annotations

import base64
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from manylora.server.api.access.access_log import ACCESS_LOGGER, AccessLog
from manylora.server.api.access.redaction import MASK, RedactingFormatter, Redactor, error_redactor
from tests.support.paths import ROOT
from tests.support.raw_requests import AsgiExchange

KEYS = ("sk-user+1/2=", "sk-ädmin-7f3a")
HEADERS = ("x-api-key", "api-key", "cookie", "x-request-id", "user-agent", "referer", "origin", "if-match")
START_SECONDS = 300.0  # the first start on a machine compiles the kernels


@pytest.mark.parametrize("key", [*KEYS, "a.b", "x" * 500, "back\\slash\"quote'", "日本"])
def test_every_spelling_is_redacted(key: str) -> None:
    redact = Redactor(["other", key]).redact
    for spelled in (key, quote(key), quote(key, safe=""), repr(key)[1:-1], ascii(key)[1:-1]):
        assert spelled not in redact(f"before{spelled}after"), spelled
    assert redact("nothing here") == "nothing here"
    assert redact(f"{key} and {key}") == f"{MASK} and {MASK}"


def test_without_keys_nothing_is_redacted() -> None:
    assert Redactor([]).redact("text") == "text"
    assert error_redactor(["admin"]).redact("That takes an admin key") == "That takes an admin key"


def _record(message: object, *args: object, fault: BaseException | None = None) -> logging.LogRecord:
    info = None if fault is None else (type(fault), fault, fault.__traceback__)
    return logging.LogRecord("manylora.x", logging.ERROR, __file__, 1, message, args, info)


def _raised(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


@pytest.mark.parametrize("key", KEYS)
def test_log_lines_are_redacted(key: str) -> None:
    form = RedactingFormatter("%(levelname)s %(name)s: %(message)s", Redactor(KEYS))
    records = [
        _record("asked for %s", key),
        _record("asked for %s by %d: %r", ValueError(key), 7, [key]),
        _record(f"asked for {key}"),
        _record("a fault", fault=_raised(f"no {key} here")),
    ]
    for record in records:
        logging.Formatter().format(record)  # another handler's, which leaves the traceback in the record
        line = form.format(record)
        assert key not in line
        assert ascii(key)[1:-1] not in line
        assert MASK in line
    assert "ValueError" in form.format(records[-1])
    assert form.format(_record("%d of %s", 3, "four")) == "ERROR manylora.x: 3 of four"
    assert form.format(_record("100%")) == "ERROR manylora.x: 100%"


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/health", "/health"),
        ("/v1/adapters\n", "/v1/adapters%0A"),
        ('/x\r\n127.0.0.1 "GET / HTTP/1.1" 200', "/x%0D%0A127.0.0.1%20%22GET%20/%20HTTP/1.1%22%20200"),
        ("/v1/models/größe", "/v1/models/gr%C3%B6%C3%9Fe"),
        ("/v1/models/sk-ädmin-7f3a/x", "/v1/models/[key]/x"),
    ],
)
async def test_an_access_line(path: str, logged: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[operator]

    exchange = AsgiExchange({}, "/")
    exchange.scope.update(path=path, query_string=b"api_key=sk-other")
    caplog.set_level(logging.INFO, ACCESS_LOGGER)
    await exchange.run(AccessLog(app, Redactor(KEYS)))
    assert [record.getMessage() for record in caplog.records] == [f'test:1 "POST {logged} HTTP/1.1" 204']


async def test_an_access_line_of_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise ValueError

    caplog.set_level(logging.INFO, ACCESS_LOGGER)
    with pytest.raises(ValueError):  # noqa: PT011  (whichever it is)
        await AsgiExchange({}, "/x").run(AccessLog(app, Redactor([])))
    assert caplog.records[0].getMessage().endswith('"POST /x HTTP/1.1" 500')


class Process:
    """``manylora serve`` in a process of its own, and all that it writes."""

    def __init__(self, model: Path, folder: Path) -> None:
        options = {
            "model": model,
            "served-model-name": "tiny",
            "port": 0,
            "device": "cpu",
            "dtype": "fp32",
            "kv-cache-memory": "8MiB",
            "adapter-memory": "4MiB",
            "data-dir": folder / "data",
            "resolve": f"file://{folder}/{{name}}",
            "log-level": "debug",
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        keys = {"MANYLORA_API_KEY": KEYS[0], "MANYLORA_ADMIN_API_KEY": KEYS[1], "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "manylora", "serve", "--access-log", *given],
            cwd=ROOT,
            env={**os.environ, **keys, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._ready = threading.Event()  # or it has ended
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            if "Ready on" in line:
                self._ready.set()
        self._ready.set()

    def url(self) -> str:
        """Its address, once it serves."""
        assert self._ready.wait(START_SECONDS)
        found = re.search(r"Ready on (http://\S+)", "".join(self._lines))
        assert found is not None, "".join(self._lines)
        return found[1]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Its status and everything it has written, after a signal."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status, "".join(self._lines)


@pytest.fixture
def process(tiny_llama: Path, tmp_path: Path) -> Iterator[Process]:
    process = Process(tiny_llama, tmp_path)
    yield process
    process.end(signal.SIGKILL)


def _odd_places(key: str) -> Iterator[tuple[str, str, dict[str, bytes], dict[str, object] | None]]:
    """Method, target, headers and JSON of requests that carry a key where none belongs, or where it does."""
    raw = key.encode()
    for path in ("/v1/models", "/v1/adapters", "/nothing", "/health", "/v1/chat/completions"):
        for name in ("api_key", "key", "access_token", "limit", key):
            yield "GET", f"{path}?{quote(name, safe='')}={quote(key, safe='')}", {}, None
    for path in ("", "/v1/models", "/v1/adapters", "/v1/aliases", "/docs", "/nothing"):
        yield "GET", f"{path}/{quote(key, safe='')}", {"authorization": b"Bearer " + raw}, None
        yield "DELETE", f"{path}/{quote(key)}%0a", {"authorization": b"Bearer " + raw}, None
    basic = b"Basic " + base64.b64encode(b"user:" + raw)
    for value in (raw, b"Bearer" + raw, b"Bearer  " + raw, basic, b"Bearer " + raw + b" x", b"Token " + raw):
        yield "GET", "/v1/models", {"authorization": value}, None
    for name in HEADERS:
        yield "GET", "/v1/models", {name: raw, "authorization": b"Bearer " + raw}, None
    bodies: list[dict[str, object]] = [{"model": key}, {key: 1}, {"user": key}, {"prompt": [key]}]
    for body in bodies:
        asked: dict[str, object] = {"model": "tiny", "prompt": "x", "max_tokens": 1, **body}
        yield "POST", "/v1/completions", {"authorization": b"Bearer " + raw}, asked
    loaded: dict[str, object] = {"lora_name": "a", "lora_path": f"/{key}"}
    yield "POST", "/v1/load_lora_adapter", {"authorization": b"Bearer " + raw}, loaded


def _raw(url: str, data: bytes) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        connection.recv(4096)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_server_writes_no_key(process: Process) -> None:
    url = process.url()
    asked = 0
    with httpx.Client(base_url=url, timeout=30) as http:
        for key in KEYS:
            for method, target, headers, body in _odd_places(key):
                raw = [(name.encode(), value) for name, value in headers.items()]
                answer = http.request(method, target, headers=raw, json=body)
                assert not _found(answer.text), (method, target, answer.text)
                asked += 1
            _raw(url, b"GET /" + key.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            _raw(url, b"NO" + key.encode() + b" / HTTP/1.1\r\n\r\n")
            user = quote(key, safe="").encode()
            _raw(url, b"GET http://" + user + b"@x/health HTTP/1.1\r\nHost: x\r\n\r\n")
    status, output = process.end(signal.SIGTERM)
    assert status == 0
    assert not _found(output), output
    lines = [line for line in output.splitlines() if ACCESS_LOGGER in line]
    assert len(lines) >= asked
    assert not [line for line in lines if "?" in line or "api_key" in line]
    assert any('"GET /v1/models HTTP/1.1" 200' in line for line in lines)
    assert any('"GET /v1/models HTTP/1.1" 401' in line for line in lines)


def _found(text: str) -> list[str]:
    spelled = {each for key in KEYS for each in (key, quote(key), quote(key, safe=""), ascii(key)[1:-1])}
    return [each for each in spelled if each.lower() in text.lower()]
