"""Publishing over HTTP: files, archives and sources; idempotent, all or nothing, bounded."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.errors import AdapterDeleted
from manylora.adapters.registry.names import Names
from manylora.adapters.registry.records import NameRecord, State
from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, error_of, tarred, zipped
from tests.support.running_server import Running, serving, tiny_service
from tests.support.waiting import until

pytestmark = pytest.mark.slow

LIMIT = 1 << 20  # bytes of an upload
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def running(model: Path, data: Path, roots: Path) -> Iterator[Running]:
    with serving(tiny_service(model, data, adapter_root=[roots], max_upload_bytes=LIMIT)) as running:
        yield running


@pytest.fixture
def admin(running: Running, data: Path) -> Iterator[Admin]:
    """A server without adapters; after a test there are none, and no file of one."""
    admin = Admin(running)
    yield admin
    admin.forget_all()
    running.wait_until_idle()
    assert files_in(data) == set()


def files_in(data: Path) -> set[str]:
    """Every file and directory in the data directory that is not the registry's or the store's own."""
    return {
        path.name
        for path in (data / "adapters").rglob("*")
        if path.name[:6] not in {".lock", ".live-", ".ident"}
    }


def is_empty(data: Path) -> bool:
    """Whether :func:`files_in` finds none, also while the server removes some under its hands."""
    try:
        return not files_in(data)
    except FileNotFoundError:
        return False


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    return write_adapter(tmp_path / "a", model, targets="all-linear")


def test_new_unchanged_and_replaced(admin: Admin, adapter: Path, tmp_path: Path, model: Path) -> None:
    new = admin.upload("a", adapter, tags=["x"], wait="true")
    assert new.status_code == 201
    assert new.json()["state"] == "ready"
    assert new.json()["tags"] == ["x"]
    again = admin.upload("a", adapter, tags=["y", "z"], wait="true")
    assert again.status_code == 200
    assert again.json()["digest"] == new.json()["digest"]
    assert again.json()["tags"] == ["y", "z"]
    assert len(again.json()["revisions"]) == 1
    other = write_adapter(tmp_path / "b", model, seed=5)
    replaced = admin.upload("a", other, wait="true")
    assert replaced.status_code == 200
    assert replaced.json()["digest"] != new.json()["digest"]
    assert [r["digest"] for r in replaced.json()["revisions"]][1:] == [new.json()["digest"]]
    assert replaced.headers["x-manylora-model"] == f"a@{replaced.json()['revision']}"


def test_without_waiting(admin: Admin, adapter: Path) -> None:
    begun = admin.upload("a", adapter)
    assert begun.status_code == 202
    assert begun.headers["location"] == "/v1/adapters/a"
    assert begun.json()["publication"]["state"] in {"loading", "ready"}
    found = admin.settled("a")
    assert found["state"] == State.READY
    size = sum(path.stat().st_size for path in adapter.iterdir())
    assert found["publication"] == {
        "state": "ready",
        "source": "upload://",
        "received_bytes": size,
        "total_bytes": size,
        "error": None,
    }


@pytest.mark.parametrize(
    ("file", "pack"),
    [
        ("a.zip", zipped),
        ("a.tar.gz", tarred),
        ("a.tar", lambda directory: tarred(directory, mode="w")),
        ("anything", zipped),
        ("a.tgz", lambda directory: tarred(directory, folder="checkpoint/")),
        ("a.zip", lambda directory: zipped(directory, folder="adapter/")),
    ],
)
def test_archives(
    admin: Admin, adapter: Path, tmp_path: Path, file: str, pack: Callable[[Path], bytes]
) -> None:
    (adapter / "README.md").write_text("of no interest")
    digest = admin.upload("files", adapter, wait="true").json()["digest"]
    (tmp_path / file).write_bytes(pack(adapter))
    answer = admin.upload("packed", tmp_path / file, wait="true")
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == digest
    assert answer.json()["source"] == f"upload://{file}"


def test_a_taken_name(admin: Admin, adapter: Path) -> None:
    header = {"if-none-match": "*"}
    assert admin.upload("a", adapter, headers=header, wait="true").status_code == 201
    for refused in (
        admin.upload("a", adapter, headers=header),
        admin.upload("a", adapter, replace="false"),
        admin.fetch("a", "nowhere", replace="false"),
    ):
        assert error_of(refused) == (409, "adapter_exists", "name")
    assert error_of(admin.upload("tiny", adapter)) == (409, "adapter_exists", "name")
    assert error_of(admin.upload("b", adapter, headers=header, replace="true"))[2] == "replace"
    for name, value in (("if-none-match", '"abc"'), ("if-match", "*")):
        assert error_of(admin.upload("b", adapter, headers={name: value}))[1] == "unsupported_parameter"
    assert admin.names() == ["a"]


@pytest.mark.parametrize("name", ["-a", ".a", "a+b", "a*b", "a@b", "a b", "€", "x" * 129, "x" * 600])
def test_hostile_names(admin: Admin, adapter: Path, name: str) -> None:
    status, _, param = error_of(admin.upload(name, adapter, wait="true"))
    assert (status, param) == (400, "name")


def test_all_faults_are_told(admin: Admin, adapter: Path) -> None:
    config = (adapter / CONFIG).read_text().replace('"lora_alpha": 16', '"lora_alpha": -1, "novel": 3')
    (adapter / CONFIG).write_text(config)
    (adapter / WEIGHTS).unlink()
    refused = admin.upload("a", adapter, wait="true")
    assert error_of(refused) == (422, "invalid_adapter", "files")
    for part in ("lora_alpha", "novel", WEIGHTS):
        assert part in refused.json()["error"]["message"]
    begun = admin.upload("b", adapter)
    assert begun.status_code == 202
    found = admin.settled("b")
    assert found["state"] == "failed"
    assert found["error"] == refused.json()["error"]["message"]
    assert found["publication"]["state"] == "failed"
    assert found["publication"]["error"] == refused.json()["error"]
    status, code, _ = error_of(admin.ask("POST", "/v1/completions", json={"model": "b", "prompt": "x"}))
    assert (status, code) == (404, "model_not_found")


def test_what_fails_leaves_what_served(admin: Admin, adapter: Path) -> None:
    served = admin.upload("a", adapter, wait="true").json()
    (adapter / WEIGHTS).write_bytes(b"nonsense")
    assert admin.upload("a", adapter, wait="true").status_code == 422
    found = admin.get("/a")
    assert (found["state"], found["digest"]) == ("ready", served["digest"])
    assert found["error"]
    assert admin.server.client().completions.create(model="a", prompt="x", max_tokens=1).choices
    assert found["publication"]["state"] == "failed"


def test_forms_that_are_refused(admin: Admin, adapter: Path) -> None:
    def form(**options: Any) -> Any:
        return error_of(admin.ask("PUT", "/a", **options))

    assert form(files=[("colour", (None, "red"))])[1:] == ("unknown_parameter", "colour")
    assert form(files=[("tags", (None, "x"))])[2] == "files"
    assert form(content=b"x", headers={"content-type": "multipart/form-data"})[1] == "invalid_form"
    assert form(content=b"x", headers={"content-type": "application/json"})[1] == "invalid_json"
    assert form(json={"tags": []})[2] == "source"
    assert form(json={"source": "x", "tag": "y"})[2] == "tag"
    assert form(json={"source": "x\0"})[2] == "source"
    assert form(json={"source": "x"}, params={"wiat": "true"})[2] == "wiat"
    assert error_of(admin.upload("a", adapter, tags=["white space"]))[2] == "tags"
    assert error_of(admin.upload("a", adapter, tags=[f"t{i}" for i in range(33)]))[2] == "tags"


def test_what_is_not_even_looked_at_leaves_nothing(
    admin: Admin, adapter: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the name is deleted while the upload waits for its turn."""
    announce = Names.announce

    def deleted(*what: Any, announced: NameRecord | None = None) -> NameRecord:
        if announced is not None:
            raise AdapterDeleted("deleted")
        return announce(*what)

    monkeypatch.setattr(Names, "announce", deleted)
    assert error_of(admin.upload("a", adapter, wait="true")) == (409, "adapter_deleted", "name")
    monkeypatch.undo()
    admin.server.call(until(lambda: is_empty(data)))


def test_two_files_of_one_name(admin: Admin, adapter: Path) -> None:
    refused = admin.upload("a", adapter, adapter / CONFIG, wait="true")
    assert error_of(refused) == (422, "invalid_adapter", "files")
    assert f"two files called '{CONFIG}'" in refused.json()["error"]["message"]


def test_an_archive_beside_other_files(admin: Admin, adapter: Path, tmp_path: Path) -> None:
    """The files count where they are an adapter; else it is said why the archive does not."""
    archive = tmp_path / "all.zip"
    archive.write_bytes(zipped(adapter))
    assert admin.upload("a", adapter, archive, wait="true").status_code == 201
    refused = admin.upload("b", adapter / CONFIG, archive, wait="true")
    assert error_of(refused) == (422, "invalid_adapter", "files")
    assert "'all.zip' beside other files: send it alone" in refused.json()["error"]["message"]


def test_sources(admin: Admin, roots: Path, model: Path, tmp_path: Path) -> None:
    path = write_adapter(roots / "inside", model)
    for name, source in (("a", str(path)), ("b", f"file://{path}"), ("c", "inside")):
        answer = admin.fetch(name, source, tags=["x"], wait="true")
        assert answer.status_code == 201, answer.text
        assert answer.json()["source"] == source
        assert answer.json()["tags"] == ["x"]
    outside = write_adapter(tmp_path / "outside", model)
    assert error_of(admin.fetch("d", str(outside))) == (403, "source_forbidden", "source")
    assert error_of(admin.fetch("d", "hf://org/repo@main")) == (403, "source_forbidden", "source")
    assert error_of(admin.fetch("d", str(roots / "none"), wait="true")) == (422, "artifact_missing", "source")


def test_an_upload_over_the_limit(admin: Admin, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "large.zip").write_bytes(os.urandom(LIMIT))
    assert error_of(admin.upload("a", tmp_path / "large.zip", wait="true"))[:2] == (413, "body_too_large")

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
        while True:
            yield b"x" * (1 << 16)

    with pytest.raises(OSError):  # noqa: PT011  (the server closes the connection, whichever way it is seen)
        _send_chunks(admin.server, endless())
    assert admin.names() == []


def _send_chunks(server: Running, chunks: Iterator[bytes]) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        connection.request(
            "PUT",
            "/v1/adapters/a",
            chunks,
            {"content-type": "multipart/form-data; boundary=x"},
            encode_chunked=True,
        )
    finally:
        connection.close()


def test_a_client_that_leaves_half_way(admin: Admin, adapter: Path, data: Path) -> None:
    head = (
        "PUT /v1/adapters/a HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        'Content-Length: 500000\r\n\r\n--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    )
    port = int(admin.server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + b"x" * 200_000)
        admin.server.call(until(lambda: files_in(data)))  # it has begun to write
    admin.server.call(until(lambda: is_empty(data)))
    assert admin.names() == []
