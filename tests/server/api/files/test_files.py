"""``/v1/files``: what OpenAI's client does with files, and what is refused."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
import pytest

from manylora.adapters.registry.files import FileRecord
from manylora.server.files.expiry import FileExpiry
from manylora.server.files.readers import files_in_use
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), max_upload_bytes=1 << 20)
    with serving(service) as server:
        yield server


def directory(running: Running) -> Path:
    return running.service.config.data_dir / "files"


def upload(running: Running, content: bytes = b"{}\n", **fields: Any) -> Any:
    fields = {"purpose": "batch", **fields}
    return running.client().files.create(file=("lines.jsonl", content), **fields)


def test_a_file_goes_in_and_comes_out(running: Running) -> None:
    content = os.urandom(300_000)
    client = running.client()
    file = upload(running, content)
    assert file.object == "file"
    assert file.bytes == len(content)
    assert file.filename == "lines.jsonl"
    assert file.status == "processed"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as refused:
        client.files.retrieve(file.id)
    assert refused.value.param == "id"
    assert not (directory(running) / file.id).exists()


def test_files_are_listed_in_pages(running: Running) -> None:
    client = running.client()
    made = [upload(running, purpose="evals").id for _ in range(5)]
    newest = [
        file.id for file in client.files.list(purpose="evals", limit=2)
    ]  # the client asks for all pages
    assert newest == made[::-1]
    page = client.files.list(purpose="evals", limit=2, order="asc")
    assert [file.id for file in page.data] == made[:2]
    assert page.has_more
    after = client.files.list(purpose="evals", order="asc", after=made[3])
    assert [file.id for file in after.data] == made[4:]
    with pytest.raises(openai.BadRequestError):
        client.files.list(after="file-none")


def test_an_expiry_is_kept(running: Running) -> None:
    file = upload(running, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    assert upload(running, purpose="batch").expires_at == pytest.approx(time.time() + 30 * 86400, abs=60)
    assert upload(running, purpose="fine-tune").expires_at is None


def test_files_are_checksummed(running: Running) -> None:
    content = os.urandom(1000)
    file = upload(running, content, purpose="user_data")
    raw = running.client().files.with_raw_response.content(file.id)
    assert raw.headers["repr-digest"] == f"sha-256=:{b64encode(sha256(content).digest()).decode()}:"


def test_the_clients_wait_ends(running: Running) -> None:
    client = running.client()
    file = upload(running, purpose="fine-tune")
    assert client.files.wait_for_processing(file.id, max_wait_seconds=5).status == "processed"


def test_the_longest_page_is_openais(running: Running) -> None:
    client = running.client()
    assert client.files.list(limit=10_000).data
    with pytest.raises(openai.BadRequestError):
        client.files.list(limit=10_001)


async def _a_job(file_id: str) -> str | None:
    return None if file_id == "file-free" else "a job"


async def test_the_first_that_needs_a_file_is_told() -> None:
    async def nobody(file_id: str) -> str | None:
        return None

    assert await files_in_use()("file-a") is None
    assert await files_in_use(nobody, _a_job)("file-a") == "a job"
    assert await files_in_use(nobody, _a_job)("file-free") is None


def test_what_a_job_needs_is_neither_deleted_nor_expires(tmp_path: Path, model: Path) -> None:
    service = tiny_service(model, tmp_path)
    record = FileRecord("file-kept", 1.0, 4, "a", "fine-tune", expires=2.0, digest="0" * 64)
    service.adapters.registry.files.add(record)
    kept = tmp_path / "files" / "file-kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"kept")
    needed = [True]

    async def reader(file_id: str) -> str | None:
        return "a training job that has not ended" if needed[0] else None

    service.file_readers = files_in_use(service.batches.needs, reader)
    service.expiry = FileExpiry(service.files, service.uploads, service.file_readers)
    with serving(service) as running:
        file = upload(running)
        with pytest.raises(openai.ConflictError, match="a training job that has not ended"):
            running.client().files.delete(file.id)
        with pytest.raises(openai.NotFoundError):
            running.client().files.retrieve("file-kept")  # its time has come
        with service.files.local("file-kept") as path:
            assert path.read_bytes() == b"kept"
        needed[0] = False
        running.call(service.files.expire(service.file_readers))
        assert not kept.exists()
        assert running.client().files.delete(file.id).deleted


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "vision"}, "purpose"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "colour": "red"}, "colour"),
        ({"purpose": "batch", "expires_after[seconds]": "10"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "-1"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "३६००"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "2592001"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[anchor]": "now"}, "expires_after[anchor]"),
    ],
)
def test_forms_that_mean_nothing_are_refused(running: Running, form: dict[str, str], param: str) -> None:
    with running.http() as http:
        answer = http.post("/v1/files", data=form, files={"file": ("a", b"b")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_what_is_no_form_is_refused(running: Running) -> None:
    with running.http() as http:
        assert http.post("/v1/files", json={"purpose": "batch"}).status_code == 400
        two = [("file", ("a", b"a")), ("file", ("b", b"b"))]
        assert http.post("/v1/files", data={"purpose": "batch"}, files=two).status_code == 400
        other = http.post("/v1/files", data={"purpose": "batch"}, files={"data": ("a", b"a")})
        assert (other.status_code, other.json()["error"]["param"]) == (400, "file")
        twice = http.post("/v1/files", data={"purpose": ["batch", "evals"]}, files={"file": ("a", b"a")})
        assert (twice.status_code, twice.json()["error"]["param"]) == (400, "purpose")


def test_purposes_of_others_are_refused_with_the_reason(running: Running) -> None:
    for purpose, word in (("assistants", "user_data"), ("vision", "read text"), ("batch_output", "server")):
        with pytest.raises(openai.BadRequestError, match=word):
            upload(running, purpose=purpose)


def test_a_file_that_is_too_large_leaves_nothing(running: Running) -> None:
    before = set(directory(running).iterdir()) if directory(running).exists() else set()
    with pytest.raises(openai.APIStatusError) as refused:
        upload(running, b"x" * (2 << 20))
    assert refused.value.status_code == 413
    assert (set(directory(running).iterdir()) if directory(running).exists() else set()) == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "..\\..\\boot.ini", "a\x00b", "x" * 500, ""])
def test_names_are_told_and_never_paths(running: Running, name: str) -> None:
    with running.http() as http:
        answer = http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name or "f", b"b")})
    assert answer.status_code == 200, answer.text
    told = answer.json()["filename"]
    assert "/" not in told
    assert "\\" not in told
    assert len(told) <= 255


@pytest.mark.parametrize("file_id", ["..", "%2e%2e%2f%2e%2e", "file-" + "a" * 300, "file-ü", "batches.lock"])
def test_ids_are_no_paths(running: Running, file_id: str) -> None:
    with running.http() as http:
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
            assert http.get(path).status_code in (404, 307)


def test_bytes_without_a_row_go_at_the_next_start(tmp_path: Path, model: Path) -> None:
    service = tiny_service(model, tmp_path)
    (tmp_path / "files").mkdir()
    left, arriving = tmp_path / "files" / "file-left", tmp_path / "files" / "file-arriving"
    left.write_bytes(b"half")
    arriving.write_bytes(b"another process has not recorded it yet")
    os.utime(left, (1, 1))
    with serving(service):
        pass
    assert not left.exists()
    assert arriving.exists()
