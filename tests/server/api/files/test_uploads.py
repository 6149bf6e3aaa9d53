"""``/v1/uploads``: files in parts, as OpenAI's client sends them, and what is refused."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import md5, sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.support.running_server import Running, serving, tiny_service
from tests.support.tenants import ADMIN, bearer, tenant_key

pytestmark = pytest.mark.slow

MOST = 3 << 20  # bytes of a file here


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), max_upload_bytes=MOST)
    with serving(service) as server:
        yield server


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return running.client()


def begin(client: openai.OpenAI, nbytes: int, **fields: Any) -> Any:
    fields = {"filename": "in.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune", **fields}
    return client.uploads.create(bytes=nbytes, **fields)


def finish(client: openai.OpenAI, upload_id: str, **fields: Any) -> Any:
    return client.uploads.complete(upload_id, **fields)


def parts_on_disk(running: Running) -> list[str]:
    return [path.name for path in (running.service.config.data_dir / "files").glob("part_*")]


def test_the_clients_chunks_become_a_file(client: openai.OpenAI, running: Running, tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    path = tmp_path / "in.bin"
    path.write_bytes(content)
    done = client.uploads.upload_file_chunked(
        file=path,
        mime_type="text/jsonl",
        purpose="user_data",
        part_size=1 << 20,
        md5=md5(content).hexdigest(),
    )
    assert done.status == "completed"
    assert done.file is not None
    assert (done.file.bytes, done.file.filename, done.file.purpose) == (2_500_000, "in.bin", "user_data")
    assert client.files.retrieve(done.file.id) == done.file
    assert client.files.content(done.file.id).content == content
    assert parts_on_disk(running) == []


def test_parts_are_put_together_in_the_order_that_is_asked(client: openai.OpenAI) -> None:
    upload = begin(client, 6, expires_after={"anchor": "created_at", "seconds": 3600})
    assert (upload.object, upload.status, upload.bytes) == ("upload", "pending", 6)
    assert upload.expires_at == upload.created_at + 3600
    second, first = (client.uploads.parts.create(upload.id, data=data) for data in (b"def", b"abc"))
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    done = finish(client, upload.id, part_ids=[first.id, second.id])
    assert client.files.content(done.file.id).content == b"abcdef"
    assert done.file.expires_at == done.file.created_at + 3600


def test_a_part_that_was_sent_again_is_left_out(client: openai.OpenAI, running: Running) -> None:
    upload = begin(client, 3)
    client.uploads.parts.create(upload.id, data=b"abc")  # whose answer got lost
    again = client.uploads.parts.create(upload.id, data=b"abc")
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(upload.id, data=b"a")
    assert finish(client, upload.id, part_ids=[again.id]).file.bytes == 3
    assert parts_on_disk(running) == []


def test_completed_twice_is_one_file(client: openai.OpenAI) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"abc")
    before = len(client.files.list().data)
    told: list[Any] = []

    def complete() -> None:
        try:
            told.append(finish(client, upload.id, part_ids=[part.id]).file.id)
        except openai.ConflictError as busy:
            told.append(busy.code)

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    complete()
    assert told[-1].startswith("file-")
    assert set(told) <= {told[-1], "in_use"}
    assert len(client.files.list().data) == before + 1
    for again in ({"part_ids": [part.id], "md5": "0" * 32}, {"part_ids": ["part_other"]}):
        with pytest.raises(openai.BadRequestError, match="is completed"):
            finish(client, upload.id, **again)
    with pytest.raises(openai.BadRequestError, match="is completed"):
        client.uploads.parts.create(upload.id, data=b"d")
    with pytest.raises(openai.BadRequestError, match="is completed"):
        client.uploads.cancel(upload.id)


def test_a_cancelled_upload_takes_nothing(client: openai.OpenAI, running: Running) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert parts_on_disk(running) == []
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        client.uploads.parts.create(upload.id, data=b"a")
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        finish(client, upload.id, part_ids=[part.id])


def test_what_is_not_the_announced_file_is_refused(client: openai.OpenAI) -> None:
    upload, other = begin(client, 4), begin(client, 4)
    mine, theirs = (client.uploads.parts.create(each.id, data=b"abc") for each in (upload, other))
    tail = client.uploads.parts.create(upload.id, data=b"d")
    for part_ids, word in (
        ([mine.id, theirs.id], "no part"),
        ([mine.id, "../../etc/passwd"], "no part"),
        ([mine.id, mine.id], "twice"),
        ([mine.id], "announced"),
    ):
        with pytest.raises(openai.BadRequestError, match=word) as refused:
            finish(client, upload.id, part_ids=part_ids)
        assert refused.value.param == "part_ids"
    with pytest.raises(openai.BadRequestError, match="MD5") as wrong:
        finish(client, upload.id, part_ids=[mine.id, tail.id], md5="0" * 32)
    assert wrong.value.param == "md5"
    with pytest.raises(openai.BadRequestError):
        finish(client, upload.id, part_ids=[mine.id, tail.id], md5="no digest")
    done = finish(client, upload.id, part_ids=[mine.id, tail.id], md5=md5(b"abcd").hexdigest().upper())
    assert done.status == "completed"
    client.uploads.cancel(other.id)


def test_parts_that_can_not_be_are_refused(client: openai.OpenAI, running: Running) -> None:
    upload = begin(client, 4)
    for data in (b"", b"abcde"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.parts.create(upload.id, data=data)
        assert refused.value.param == "data"
    with running.http() as http:
        path = f"/v1/uploads/{upload.id}/parts"
        assert http.post(path, json={"data": "abc"}).status_code == 400
        assert http.post(path, files={"file": b"abc"}).status_code == 400
        assert http.post(path, files={"data": b"abc"}, data={"more": "x"}).status_code == 400
        assert http.post("/v1/uploads/upload_none/parts", files={"data": b"abc"}).status_code == 404
    assert parts_on_disk(running) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", 0),
        ("bytes", -1),
        ("bytes", MOST + 1),
        ("bytes", 9 << 30),
        ("bytes", "4"),
        ("filename", ""),
        ("mime_type", ""),
        ("mime_type", "a\x00b"),
        ("purpose", "assistants"),
        ("purpose", "fine-tune-results"),
        ("expires_after", {"anchor": "created_at", "seconds": 3599}),
        ("expires_after", {"anchor": "now", "seconds": 3600}),
        ("colour", "red"),
    ],
)
def test_announcements_that_can_not_be_are_refused(running: Running, field: str, value: Any) -> None:
    body = {"bytes": 4, "filename": "a", "mime_type": "text/jsonl", "purpose": "evals", field: value}
    with running.http() as http:
        told = http.post("/v1/uploads", json=body)
    assert told.status_code == 400
    assert told.json()["error"]["param"].startswith(field)


def test_an_upload_takes_so_many_parts(client: openai.OpenAI, running: Running) -> None:
    upload = begin(client, 9)
    running.service.uploads.max_parts = 2
    try:
        for data in (b"a", b"b"):
            client.uploads.parts.create(upload.id, data=data)
        with pytest.raises(openai.BadRequestError, match="2 parts"):
            client.uploads.parts.create(upload.id, data=b"c")
    finally:
        running.service.uploads.max_parts = 10_000
    client.uploads.cancel(upload.id)
    assert parts_on_disk(running) == []


def test_an_hour_later_it_has_expired(
    client: openai.OpenAI, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"abc")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    with pytest.raises(openai.BadRequestError, match="is expired"):
        finish(client, upload.id, part_ids=[part.id])
    assert parts_on_disk(running) != []
    running.call(running.service.uploads.expire())
    assert parts_on_disk(running) == []
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86400)
    running.call(running.service.uploads.expire())
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel(upload.id)


def test_an_upload_outlives_the_server(tmp_path: Path, model: Path) -> None:
    with serving(tiny_service(model, tmp_path)) as first:
        upload = begin(first.client(), 6)
        one = first.client().uploads.parts.create(upload.id, data=b"abc")
    with serving(tiny_service(model, tmp_path)) as second:
        client = second.client()
        two = client.uploads.parts.create(upload.id, data=b"def")
        done = finish(client, upload.id, part_ids=[one.id, two.id])
        assert client.files.content(done.file.id).content == b"abcdef"


def test_bytes_that_changed_on_the_disk_are_told(client: openai.OpenAI, running: Running) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"abc")
    (running.service.config.data_dir / "files" / part.id).write_bytes(b"abd")
    with pytest.raises(openai.NotFoundError, match="damaged"):
        finish(client, upload.id, part_ids=[part.id])
    client.uploads.cancel(upload.id)


def test_tenants_are_kept_apart_and_their_bytes_count_while_they_come(tmp_path: Path, model: Path) -> None:
    service = tiny_service(model, tmp_path, admin_api_key=[ADMIN])
    with serving(service) as running, running.http() as http:
        acme, globex = (
            running.client(api_key=tenant_key(http, name, limits={"file_bytes": 1000}))
            for name in ("acme", "globex")
        )
        upload = begin(acme, 600)
        with pytest.raises(openai.NotFoundError):
            globex.uploads.parts.create(upload.id, data=b"abc")
        with pytest.raises(openai.NotFoundError):
            finish(globex, upload.id, part_ids=["part_1"])
        with pytest.raises(openai.NotFoundError):
            globex.uploads.cancel(upload.id)
        refused = _status(lambda: begin(acme, 401))
        assert refused == (403, "quota_exceeded")
        assert _status(lambda: acme.files.create(file=b"x" * 401, purpose="evals")) == refused
        small = acme.files.create(file=b"x" * 400, purpose="evals")
        part = acme.uploads.parts.create(upload.id, data=b"y" * 600)
        assert _status(lambda: acme.uploads.parts.create(upload.id, data=b"y" * 600)) == refused
        done = finish(acme, upload.id, part_ids=[part.id])
        assert acme.files.content(done.file.id).content == b"y" * 600
        assert _status(lambda: begin(acme, 1)) == refused
        begin(globex, 1000)
        acme.files.delete(small.id)
        assert acme.uploads.cancel(begin(acme, 400).id).status == "cancelled"
        begin(acme, 400)
        left = [
            path.name for path in (tmp_path / "files").iterdir() if path.name.startswith(("file", "part"))
        ]
        assert left == [done.file.id]
        for name in ("acme", "globex"):
            http.delete(f"/v1/tenants/{name}", headers=bearer(ADMIN))


def _status(ask: Any) -> tuple[int, str | None]:
    with pytest.raises(openai.APIStatusError) as refused:
        ask()
    return refused.value.status_code, refused.value.code


def test_digests_are_those_of_the_whole(client: openai.OpenAI, running: Running) -> None:
    upload = begin(client, 4)
    parts = [client.uploads.parts.create(upload.id, data=data).id for data in (b"ab", b"cd")]
    done = finish(client, upload.id, part_ids=parts)
    record = running.service.files.get(done.file.id)
    assert record is not None
    assert record.digest == sha256(b"abcd").hexdigest()


@pytest.mark.parametrize("upload_id", ["..", "%2e%2e", "upload_" + "a" * 300, "upload-ü", "nothing"])
def test_ids_are_no_paths(running: Running, upload_id: str) -> None:
    with running.http() as http:
        for path in (f"/v1/uploads/{upload_id}/cancel", f"/v1/uploads/{upload_id}/parts"):
            told: httpx.Response = http.post(path, files={"data": b"a"})
            assert told.status_code in (404, 405), told.text


@pytest.mark.parametrize(
    ("path", "most"),
    [("/v1/files", 512 << 20), ("/v1/uploads/{}/parts", 64 << 20), ("/v1/uploads/{}/complete", 4 << 20)],
)
def test_openais_bounds_are_held_before_a_byte_is_read(unbounded: Running, path: str, most: int) -> None:
    upload = begin(unbounded.client(), 80 << 20)
    address = urlsplit(unbounded.url)
    kind = "application/json" if path.endswith("complete") else "multipart/form-data; boundary=x"
    for declared, status in ((most + (1 << 20), b"413"), (most, b"")):
        head = f"POST {path.format(upload.id)} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: {declared}\r\n\r\n".encode())
            connection.settimeout(30 if status else 0.5)
            try:
                told = connection.recv(12)[9:]
            except TimeoutError:
                told = b""  # it waits for the body
        assert told == status, declared


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    """A server with the default of --max-upload-bytes."""
    with serving(tiny_service(model, tmp_path_factory.mktemp("unbounded"))) as server:
        yield server


def test_the_clients_own_size_of_parts_fits(unbounded: Running) -> None:
    upload = begin(unbounded.client(), 64 << 20)
    part = unbounded.client().uploads.parts.create(upload.id, data=bytes(64 << 20))
    assert finish(unbounded.client(), upload.id, part_ids=[part.id]).file.bytes == 64 << 20
