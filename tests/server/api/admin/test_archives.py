"""Archives over HTTP: as the body itself, with checkpoints, and one folder of several."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, error_of, tarred, zipped
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, roots: Path) -> Iterator[Running]:
    service = tiny_service(
        model, tmp_path_factory.mktemp("data"), adapter_root=[roots], max_upload_bytes=1 << 20
    )
    with serving(service) as running:
        yield running


def put(admin: Admin, content: bytes, kind: str | None, **query: Any) -> Any:
    headers = {} if kind is None else {"content-type": kind}
    return admin.ask("PUT", "/a", content=content, headers=headers, params={"wait": "true", **query})


def checkpoints(directory: Path, model: Path, *, root: bool) -> Path:
    """A trainer's output: two checkpoints, and perhaps the adapter itself."""
    for step in (200, 400):
        write_adapter(directory / f"checkpoint-{step}", model, seed=step)
    if root:
        write_adapter(directory, model, seed=1)
    return directory


def archive_of(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(directory.rglob("*")):
            archive.write(path, path.relative_to(directory.parent))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "pack"),
    [
        ("application/zip", "zip"), ("application/x-zip-compressed", "zip"), ("application/x-tar", "tar"),
        ("application/gzip", "tar.gz"), ("application/x-gzip; charset=binary", "tar.gz"),
        ("application/octet-stream", "zip"), ("application/octet-stream", "tar"), (None, "tar.gz"),
        ("application/x-www-form-urlencoded", "zip"), ("text/plain", "tar"),
    ],
)  # fmt: skip
def test_an_archive_as_the_body(
    admin: Admin, tmp_path: Path, model: Path, kind: str | None, pack: str
) -> None:
    adapter = write_adapter(tmp_path / "a", model)
    packed = {"zip": zipped(adapter), "tar": tarred(adapter, mode="w"), "tar.gz": tarred(adapter)}[pack]
    answer = put(admin, packed, kind)
    assert answer.status_code == 201, answer.text
    digest = admin.upload("b", adapter, wait="true").json()["digest"]
    assert answer.json()["digest"] == digest
    assert answer.json()["publication"]["received_bytes"] == len(packed)


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "application/zip", 422, "invalid_adapter"),
        (b"not a zip", "application/zip", 422, "invalid_adapter"),
        (b"PK\x03\x04" + b"x" * 600, None, 422, "invalid_adapter"),
        (b"\x1f\x8b" + b"x" * 600, "application/octet-stream", 422, "invalid_adapter"),
        (b"BZh91AY" + b"x" * 600, "application/octet-stream", 422, "invalid_adapter"),
        (b"whatever", "application/octet-stream", 400, "invalid_archive"),
        (b"", "application/octet-stream", 400, "invalid_archive"),
        (b"whatever", "text/plain", 400, "invalid_json"),
        (b"", None, 400, "invalid_json"),
        (b"x" * (1 << 20), None, 400, "invalid_json"),
        (b"PK\x03\x04" + b"x" * (1 << 20), None, 413, "body_too_large"),
        (b"PK\x03\x04", "application/json", 400, "invalid_json"),
    ],
)
def test_bodies_that_are_none(admin: Admin, content: bytes, kind: str | None, status: int, code: str) -> None:
    found = put(admin, content, kind)
    assert error_of(found)[:2] == (status, code)


def test_a_source_needs_no_content_type(admin: Admin, roots: Path, model: Path) -> None:
    write_adapter(roots / "plain", model)
    assert put(admin, b'{"source": "plain"}', None).status_code == 201


def test_the_root_wins_and_a_subfolder_is_taken(admin: Admin, tmp_path: Path, model: Path) -> None:
    directory = checkpoints(tmp_path / "run", model, root=True)
    digests = {
        name: admin.upload("files", *sorted(path.glob("adapter_*")), wait="true").json()["digest"]
        for name, path in {"": directory, "checkpoint-400": directory / "checkpoint-400"}.items()
    }
    (tmp_path / "run.zip").write_bytes(archive_of(directory))
    for asked, digest in digests.items():
        assert (
            put(admin, archive_of(directory), "application/zip", subfolder=asked).json()["digest"] == digest
        )
        assert (
            admin.upload("b", tmp_path / "run.zip", wait="true", subfolder=asked).json()["digest"] == digest
        )
    form = admin.ask(
        "PUT", "/c", params={"wait": "true"}, data={"subfolder": "checkpoint-400", "tags": ["x"]},
        files=[("files", ("run.zip", archive_of(directory)))],
    )  # fmt: skip
    assert form.json()["digest"] == digests["checkpoint-400"]
    assert form.json()["tags"] == ["x"]


def test_the_choice_is_named(admin: Admin, tmp_path: Path, roots: Path, model: Path) -> None:
    directory = checkpoints(tmp_path / "run", model, root=False)
    told = put(admin, archive_of(directory), "application/zip").json()["error"]["message"]
    assert "'run/checkpoint-200/', 'run/checkpoint-400/': pass subfolder=" in told
    checkpoints(roots / "unended", model, root=False)
    answer = admin.fetch("a", "unended", wait="true")
    assert "'checkpoint-200/', 'checkpoint-400/': pass subfolder=" in answer.json()["error"]["message"]


def test_a_subfolder_of_a_source(admin: Admin, roots: Path, model: Path) -> None:
    checkpoints(roots / "trained", model, root=True)
    body = admin.ask(
        "PUT", "/a", json={"source": "trained", "subfolder": "checkpoint-200"}, params={"wait": "1"}
    )
    query = admin.fetch("b", "trained", wait="true", subfolder="checkpoint-200")
    assert body.json()["digest"] == query.json()["digest"]
    assert body.json()["source"] == "trained/checkpoint-200"
    assert admin.fetch("c", "trained", wait="true").json()["digest"] != query.json()["digest"]


@pytest.mark.parametrize("subfolder", ["..", "a/../..", "/etc", "C:\\x", "a\nb", "\x00"])
def test_hostile_subfolders(admin: Admin, roots: Path, model: Path, tmp_path: Path, subfolder: str) -> None:
    adapter = write_adapter(tmp_path / "a", model)
    for answer in (
        put(admin, zipped(adapter), "application/zip", subfolder=subfolder),
        admin.upload("a", adapter, subfolder=subfolder),
        admin.fetch("a", "x", subfolder=subfolder),
        admin.ask("PUT", "/a", json={"source": "x", "subfolder": subfolder}),
    ):
        assert error_of(answer) == (422, "artifact_missing", "subfolder")
    assert admin.names() == []


def test_two_different_subfolders(admin: Admin, model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", model)
    files = [("files", ("a.zip", zipped(adapter)))]
    form = admin.ask("PUT", "/a", params={"subfolder": "b"}, data={"subfolder": "c"}, files=files)
    body = admin.ask("PUT", "/a", json={"source": "x", "subfolder": "c"}, params={"subfolder": "b"})
    for answer in (form, body):
        assert error_of(answer)[::2] == (400, "subfolder")


def test_files_of_a_form_by_their_folders(admin: Admin, model: Path, tmp_path: Path) -> None:
    directory = checkpoints(tmp_path / "run", model, root=True)
    parts = [
        ("files", (str(path.relative_to(tmp_path)), path.read_bytes()))
        for path in sorted(directory.rglob("adapter_*"))
    ]
    answer = admin.ask("PUT", "/a", params={"wait": "true", "subfolder": "checkpoint-400"}, files=parts)
    assert answer.status_code == 201, answer.text
    twice = admin.ask("PUT", "/b", params={"wait": "true"}, files=parts)
    assert "two files called" in twice.json()["error"]["message"]


def test_notes_of_the_config_are_in_the_answer(admin: Admin, model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", model, unsloth_version="2025.3.19")
    answer = admin.upload("a", adapter, wait="true").json()
    (note,) = answer["details"]["notes"]
    assert "'unsloth_version'" in note
    assert admin.get("/a")["revisions"][0]["details"]["notes"] == [note]
