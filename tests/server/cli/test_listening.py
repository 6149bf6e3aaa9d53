"""Where a server listens: Unix sockets, TLS, and as many connections as there are descriptors for."""

from __future__ import annotations

import asyncio
import datetime
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from manylora.server.api.connections.connections import Connections, connection_limits
from manylora.server.api.connections.protocol import bounded_protocol
from manylora.server.cli.http_server import HttpServer
from manylora.server.cli.listening import listening, room_for_connections, tls_context
from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings

PASSWORD = "a password"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``cert.pem``, its ``key.pem``, ``locked.pem`` (that, encrypted), ``both.pem``."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("certificate")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    plain = key.private_bytes(pem, form, serialization.NoEncryption())
    locked = key.private_bytes(pem, form, serialization.BestAvailableEncryption(PASSWORD.encode()))
    (directory / "cert.pem").write_bytes(made.public_bytes(pem))
    (directory / "key.pem").write_bytes(plain)
    (directory / "locked.pem").write_bytes(locked)
    (directory / "both.pem").write_bytes(plain + made.public_bytes(pem))
    return directory


async def _answer(settings: Settings, client: httpx.AsyncClient, url: str) -> httpx.Response:
    """What a server with these settings answers."""
    tls = tls_context(settings)
    room = Connections(connection_limits(settings))
    config = uvicorn.Config(
        PlainTextResponse("hello"), lifespan="off", http=bounded_protocol(room), ws="none", log_config=None
    )
    ready = asyncio.Event()
    with listening(settings) as listener:
        server = HttpServer(config, ready.set, 1.0, tls, 5.0)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await ready.wait()
        if settings.uds is None:
            url = url.replace("PORT", str(listener.getsockname()[1]))
        async with client:
            answer = await client.get(url)
        server.should_exit = True
        await serving
    return answer


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)))
    answer = await _answer(Settings(uds=path), client, "http://localhost/")
    assert answer.text == "hello"
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem"},
        {"ssl_certfile": "both.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem", "ssl_keyfile_password": PASSWORD},
    ],
)
async def test_tls(certificate: Path, options: dict[str, str]) -> None:
    paths: dict[str, Any] = {
        name: value if "password" in name else certificate / value for name, value in options.items()
    }
    trusted = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    client = httpx.AsyncClient(verify=trusted)
    answer = await _answer(Settings(port=0, **paths), client, "https://localhost:PORT/")
    assert answer.text == "hello"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ssl_certfile": "none.pem"}, "No such file"),
        ({"ssl_certfile": "cert.pem"}, "ssl-certfile"),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem"}, "locked.pem"),
        (
            {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem", "ssl_keyfile_password": "x"},
            "locked.pem",
        ),
        ({"ssl_certfile": "key.pem", "ssl_keyfile": "key.pem"}, "key.pem"),
        ({"ssl_certfile": "."}, "ssl-certfile"),
    ],
)
def test_certificates_that_can_not_be_used(certificate: Path, options: dict[str, str], said: str) -> None:
    paths: dict[str, Any] = {
        name: value if "password" in name else certificate / value for name, value in options.items()
    }
    with pytest.raises(ConfigError, match=said):
        tls_context(Settings(**paths))


def test_a_key_without_a_certificate() -> None:
    with pytest.raises(ValidationError, match="ssl_keyfile"):
        Settings(ssl_keyfile=Path("key.pem"))


def test_a_socket_left_by_a_server_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(Settings(uds=path)) as listener:
        listener.listen()
        with (
            pytest.raises(ConfigError, match="in use"),
            listening(Settings(uds=path)),
        ):
            raise AssertionError("it took the place of one that listens")
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "nowhere", "long"])
def test_places_that_can_not_be_listened_at(tmp_path: Path, kind: str) -> None:
    path = tmp_path / {"nowhere": "no/where", "long": "x" * 200}.get(kind, "place")
    if kind == "file":
        path.write_text("kept")
    if kind == "directory":
        path.mkdir()
    with pytest.raises(ConfigError, match="--uds"), listening(Settings(uds=path)):
        raise AssertionError("it listens")
    assert kind != "file" or path.read_text() == "kept"


@pytest.fixture
def _few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_few_descriptors")
def test_descriptors_are_asked_for() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 1000 if hard == resource.RLIM_INFINITY else min(1000, hard - 400)
    assert room_for_connections(wanted) == wanted
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= wanted


@pytest.mark.parametrize(("limit", "room"), [(4096, 4096 - 320), (1024, 704), (300, 75), (64, 16)])
def test_with_few_descriptors_there_are_fewer_connections(
    monkeypatch: pytest.MonkeyPatch, limit: int, room: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert room_for_connections(100_000) == room
