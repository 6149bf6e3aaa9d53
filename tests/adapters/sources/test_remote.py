"""Fetching through fsspec: from its memory, and from a real S3 API (moto's server)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from manylora.adapters.errors import ArtifactError, SourceForbidden, SourceMissing, SourceUnreachable
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.fetching import SourcePolicy, fetch, find
from tests.support.fake_hub import Repository, running_hub

FILES = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 1_000_000}
KEYS = {"key": "testing", "secret": "testing-secret"}


@pytest.fixture
def memory() -> Iterator[SourcePolicy]:
    files = fsspec.filesystem("memory")
    for name, content in {**FILES, "README.md": b"x"}.items():
        files.pipe(f"/storage/one/{name}", content)
        files.pipe(f"/storage-secret/one/{name}", content)
    files.pipe("/storage/pickled/adapter_model.bin", b"x")
    yield SourcePolicy(urls=("memory://storage/",))
    files.store.clear()


@pytest.fixture(scope="module")
def s3() -> Iterator[SourcePolicy]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", **KEYS}
    files = fsspec.filesystem("s3", **options)
    files.mkdir("bucket")
    for name, content in {**FILES, "README.md": b"x"}.items():
        files.pipe(f"bucket/adapters/one/{name}", content)
        for secret in ("private", "adapters-private"):
            files.pipe(f"bucket/{secret}/one/{name}", content)
    try:
        yield SourcePolicy(urls=("s3://bucket/adapters",), storage={"s3": options})
    finally:
        server.stop()


def test_from_memory(memory: SourcePolicy, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetch("memory://storage/one/", tmp_path, memory, lambda *now: seen.append(now))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
    assert seen[-1] == (7_000_002, 7_000_002)


@pytest.mark.slow
def test_from_s3(s3: SourcePolicy, tmp_path: Path) -> None:
    assert fetch("s3://bucket/adapters/one", tmp_path, s3) == "s3://bucket/adapters/one"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES


@pytest.mark.slow
def test_what_was_just_uploaded_to_s3_is_seen(s3: SourcePolicy, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        fetch("s3://bucket/adapters/new", tmp_path, s3)
    assert find("new", ["s3://bucket/adapters/{name}"], s3) is None
    files = fsspec.filesystem("s3", **s3.storage["s3"])
    for name, content in FILES.items():
        files.pipe(f"bucket/adapters/new/{name}", content)
    assert find("new", ["s3://bucket/adapters/{name}"], s3) == "s3://bucket/adapters/new"
    fetch("s3://bucket/adapters/new", tmp_path, s3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "s3://bucket/private/one",
        "s3://bucket/adapters-private/one",
        "s3://bucket/adapters/../private/one",
        "s3://bucket/adapters/./../private/one",
        "s3://other/adapters/one",
        "s3a://bucket/adapters/one",
        "s3://key:secret@bucket/adapters/one",
        "s3://bucket@other/adapters/one",
        "simplecache::s3://bucket/adapters/one",
        "s3://bucket/adapters/one::file:///etc",
        "s3://bucket/adapters/one?versionId=1",
        "s3://bucket/adapters/*",
        "s3://bucket/adapters\\one",
        "s3://bucket//adapters/one",
        "S3://bucket/adapters/one",
        "s3:/bucket/adapters/one",
    ],
)
def test_only_what_lies_under_the_prefix(s3: SourcePolicy, tmp_path: Path, source: str) -> None:
    with pytest.raises((SourceForbidden, SourceMissing)) as error:
        fetch(source, tmp_path, s3)
    assert not isinstance(error.value, SourceUnreachable)
    assert "secret" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_from_a_web_server(tmp_path: Path) -> None:
    with running_hub(one=Repository(FILES)) as server:  # which serves files as any other does
        policy = SourcePolicy(urls=(f"{server.endpoint}/org",))
        assert find("one", [f"{server.endpoint}/org/{{name}}/resolve/v1"], policy) is not None
        assert find("two", [f"{server.endpoint}/org/{{name}}/resolve/v1"], policy) is None
        fetch(f"{server.endpoint}/org/one/resolve/v1", tmp_path, policy)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
        with pytest.raises(SourceForbidden):
            fetch(f"{server.endpoint}.evil.example/org/one", tmp_path, policy)


def test_missing_pickled_and_too_large(memory: SourcePolicy, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="no adapter at"):
        fetch("memory://storage/two", tmp_path, memory)
    with pytest.raises(ArtifactError, match="pickle"):
        fetch("memory://storage/pickled", tmp_path, memory)
    with pytest.raises(ArtifactError, match="more than 100 bytes"):
        fetch("memory://storage/one", tmp_path, SourcePolicy(urls=memory.urls, max_bytes=100))
    with pytest.raises(SourceForbidden):
        fetch("memory://storage-secret/one", tmp_path, memory)
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_sends_more_than_it_announced(
    memory: SourcePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = fsspec.filesystem("memory").info

    def understate(path: str) -> dict[str, object]:
        return {**info(path), "size": 1}

    monkeypatch.setattr(fsspec.filesystem("memory"), "info", understate)
    with pytest.raises(ArtifactError, match=r"more than 2,000,000 bytes"):
        fetch("memory://storage/one", tmp_path, SourcePolicy(urls=memory.urls, max_bytes=2_000_000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000_000


@pytest.mark.sweep
@pytest.mark.slow
def test_nobody_answers(s3: SourcePolicy, tmp_path: Path) -> None:
    nobody = SourcePolicy(urls=s3.urls, storage={"s3": {"endpoint_url": "http://127.0.0.1:1", **KEYS}})
    with pytest.raises(SourceUnreachable) as error:
        fetch("s3://bucket/adapters/one", tmp_path, nobody)
    assert "testing" not in str(error.value)
    with pytest.raises(SourceUnreachable, match="Protocol not known: nonsense"):
        fetch("nonsense://x/y", tmp_path, SourcePolicy(urls=("nonsense://x",)))
