"""Files in a storage that servers share: a real S3 API (moto's server), and a folder as of a network disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import openai
import pytest
from moto.server import ThreadedMotoServer

from manylora.adapters.errors import OverQuota, StorageUnreachable
from manylora.adapters.registry.registry import Registry
from manylora.server.errors import ConfigError, ObjectNotFound
from manylora.server.files.storage import UrlStorage
from manylora.server.files.stored_files import StoredFiles
from tests.support.running_server import Running, serving, tiny_service
from tests.support.waiting import wait_until


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another server's tests
    fsspec.filesystem("s3").mkdir("storage")  # buckets of other tests are in this process as well
    try:
        yield "s3://storage/files"
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def stored(root: Path, url: str, name: str) -> StoredFiles:
    registry = Registry(f"sqlite:///{root}/registry.db", directory=name)
    return StoredFiles(registry.files, root / name, url)


def written(root: Path, content: bytes) -> Path:
    path = root / "upload"
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_on_s3_servers_read_each_others_files(s3: str, tmp_path: Path) -> None:
    _two_servers(tmp_path, s3)


def test_on_a_network_disk_as_well(tmp_path: Path) -> None:
    _two_servers(tmp_path, f"file://{tmp_path}/disk")


def _two_servers(root: Path, url: str) -> None:
    one, two = stored(root, url, "one"), stored(root, f"{url}/", "two")
    content = os.urandom(3_000_000)
    record = one.add(written(root, content), "a.jsonl", "fine-tune")
    assert b"".join(two.pieces(record)) == content
    with two.local(record.id) as path:
        assert path.read_bytes() == content
    assert two.local_path(record) is None
    assert [left.name for left in (root / "two").iterdir()] == []
    assert [left.name for left in (root / "one").iterdir()] == []
    assert two.remove(record.id)
    with pytest.raises(ObjectNotFound):
        b"".join(one.pieces(record))
    files, base = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    assert files.find(base) == []


def test_what_is_not_recorded_is_not_kept(tmp_path: Path) -> None:
    files = stored(tmp_path, f"file://{tmp_path}/disk", "one")
    with pytest.raises(OverQuota):
        files.add(written(tmp_path, b"abc"), "a", "evals", room=2)
    assert (tmp_path / "upload").read_bytes() == b"abc"
    assert list((tmp_path / "disk").iterdir()) == []
    local = StoredFiles(Registry(f"sqlite:///{tmp_path}/registry.db", directory="x").files, tmp_path / "x")
    with pytest.raises(OverQuota):
        local.add(tmp_path / "upload", "a", "evals", room=2)
    assert (tmp_path / "upload").read_bytes() == b"abc"
    assert list((tmp_path / "x").iterdir()) == []


def test_what_a_crash_left_in_the_storage_goes(tmp_path: Path) -> None:
    files = stored(tmp_path, f"file://{tmp_path}/disk", "one")
    kept = files.add(written(tmp_path, b"abc"), "a", "evals")
    (tmp_path / "disk" / "file-lost").write_bytes(b"the server was killed before its row")
    for name in ("file-lost", kept.id, "file-new"):
        (tmp_path / "one" / f".sending-{name}").touch()
    (tmp_path / "disk" / "file-new").write_bytes(b"another process is still at it")
    for name in ("file-lost", kept.id):
        os.utime(tmp_path / "one" / f".sending-{name}", (1, 1))
    files.sweep()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {kept.id, "file-new"}
    assert [path.name for path in (tmp_path / "one").iterdir()] == [".sending-file-new"]


def test_files_of_before_are_still_read(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", directory="one")
    before = StoredFiles(registry.files, tmp_path / "one")
    record = before.add(written(tmp_path, b"abc"), "a", "evals")
    after = StoredFiles(registry.files, tmp_path / "one", f"file://{tmp_path}/disk")
    assert b"".join(after.pieces(record)) == b"abc"
    other = stored(tmp_path, f"file://{tmp_path}/elsewhere", "two")
    with pytest.raises(ObjectNotFound, match="another server"):
        b"".join(other.pieces(record))


def test_a_storage_that_fails_is_told_without_its_words(tmp_path: Path, monkeypatch: Any) -> None:
    files = stored(tmp_path, "memory://files", "one")
    record = files.add(written(tmp_path, b"abc"), "a", "evals")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret-host said no")

    storage = fsspec.filesystem("memory")
    monkeypatch.setattr(type(storage), "open", fail)
    monkeypatch.setattr(type(storage), "put_file", fail)
    with pytest.raises(StorageUnreachable) as told:
        b"".join(files.pieces(record))
    assert "secret" not in str(told.value)
    with pytest.raises(StorageUnreachable):
        files.add(written(tmp_path, b"abc"), "a", "evals")
    assert (tmp_path / "upload").exists()
    monkeypatch.undo()
    storage.store.clear()


@pytest.mark.parametrize(
    "url",
    [
        "bucket/files",
        "s3://key:secret@bucket/files",
        "zip://a::s3://bucket/a",
        "nothing://bucket/files",
        "://x",
    ],
)
def test_urls_that_can_not_be_are_refused_at_the_start(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="--files-url") as told:
        UrlStorage(url, tmp_path)
    assert "secret" not in str(told.value)


@pytest.fixture
def both(tmp_path: Path, model: Path) -> Iterator[tuple[Running, Running]]:
    """Two servers of a registry, each with a data directory of its own but for the adapters."""
    options = {"files_url": f"file://{tmp_path}/disk", "registry_url": f"sqlite:///{tmp_path}/registry.db"}
    with serving(tiny_service(model, tmp_path / "one", **options)) as one:
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "adapters").symlink_to(tmp_path / "one" / "adapters")
        with serving(tiny_service(model, tmp_path / "two", **options)) as two:
            yield one, two


@pytest.mark.slow
def test_two_servers_share_files_and_uploads(both: tuple[Running, Running]) -> None:
    one, two = (running.client() for running in both)
    content = os.urandom(2_500_000)
    file = one.files.create(file=("ä b.bin", content), purpose="user_data")
    raw = two.files.with_raw_response.content(file.id)
    assert raw.content == content
    assert raw.headers["content-disposition"] == "attachment; filename*=utf-8''%C3%A4%20b.bin"
    upload = one.uploads.create(bytes=6, filename="a", mime_type="text/plain", purpose="evals")
    parts = [
        client.uploads.parts.create(upload.id, data=data).id
        for client, data in ((two, b"abc"), (one, b"def"))
    ]
    done = two.uploads.complete(upload.id, part_ids=parts)
    assert done.file is not None
    assert one.files.content(done.file.id).content == b"abcdef"
    assert two.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        one.files.content(file.id)


@pytest.mark.slow
def test_batches_read_and_write_there(tmp_path: Path, model: Path) -> None:
    with serving(tiny_service(model, tmp_path / "one", files_url=f"file://{tmp_path}/disk")) as running:
        one = running.client()
        body = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
        line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}
        asked = one.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = one.batches.create(
            input_file_id=asked.id, endpoint="/v1/completions", completion_window="24h"
        )
        wait_until(lambda: one.batches.retrieve(batch.id).status == "completed")
        output = one.batches.retrieve(batch.id).output_file_id
        assert output is not None
        assert json.loads(one.files.content(output).text)["response"]["status_code"] == 200
        assert {path.name for path in (tmp_path / "disk").iterdir()} == {asked.id, output}
