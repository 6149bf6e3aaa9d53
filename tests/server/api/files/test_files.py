"""``/v1/files``: what OpenAI's client does with files, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

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


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "colour": "red"}, "colour"),
        ({"purpose": "batch", "expires_after[seconds]": "10"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "-1"}, "expires_after[seconds]"),
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
    (tmp_path / "files" / "file-left").write_bytes(b"half")
    with serving(service):
        pass
    assert not (tmp_path / "files" / "file-left").exists()
