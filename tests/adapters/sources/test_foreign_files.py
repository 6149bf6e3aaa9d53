"""Files of other tools, fetched: which of a folder's are taken, and a source that names one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from manylora.adapters.errors import ArtifactError, SourceForbidden, SourceMissing
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.fetching import SourcePolicy, check, fetch, find
from tests.support.fake_hub import COMMIT, running_hub
from tests.support.fake_hub import Repository as Repo

MLX = {CONFIG_NAME: b"{}", "adapters.safetensors": b"mlx", "0000100_adapters.safetensors": b"earlier"}
GGUF = {"a-f16.gguf": b"GGUF16", "a-q8.gguf": b"GGUF8", "README.md": b"x"}
BOTH = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"peft", "merged-q4.gguf": b"a whole model"}


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, files in (("mlx", MLX), ("gguf", GGUF), ("both", BOTH)):
        (tmp_path / "root" / folder).mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / "root" / folder / name).write_bytes(content)
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    (tmp_path / "into").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mlx", {CONFIG_NAME, "adapters.safetensors"}),
        ("both", {CONFIG_NAME, WEIGHTS_NAME}),
        ("gguf/a-q8.gguf", {"a-q8.gguf"}),
        ("mlx/0000100_adapters.safetensors", {CONFIG_NAME, "0000100_adapters.safetensors"}),
    ],
)
def test_a_directory_or_a_file(root: Path, tmp_path: Path, source: str, expected: set[str]) -> None:
    policy = SourcePolicy(roots=(root,))
    fetch(f"file://{root}/{source}", tmp_path / "into", policy)
    assert names(tmp_path / "into") == expected


def test_several_files_have_to_be_told_apart(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'a-f16.gguf', 'a-q8.gguf'; name one of them"):
        fetch("gguf", tmp_path / "into", SourcePolicy(roots=(root,)))


def test_a_file_can_not_lead_out(root: Path, tmp_path: Path) -> None:
    policy = SourcePolicy(roots=(root,))
    (root / "gguf" / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    for source in (f"{tmp_path}/secret.gguf", "../secret.gguf", "gguf/link.gguf"):
        with pytest.raises(SourceForbidden):
            fetch(source, tmp_path / "into", policy)
    (root / "gguf" / "pipe.gguf").mkdir()
    with pytest.raises(SourceMissing):
        check("gguf/none.gguf", policy)


def test_names_are_found(root: Path) -> None:
    policy = SourcePolicy(roots=(root,))
    assert find("a-q8", [f"file://{root}/gguf/{{name}}.gguf"], policy) == f"file://{root}/gguf/a-q8.gguf"
    assert find("mlx", [f"file://{root}/{{name}}"], policy) == f"file://{root}/mlx"
    assert find("none", [f"file://{root}/gguf/{{name}}.gguf"], policy) is None


@pytest.fixture
def hub() -> Iterator[SourcePolicy]:
    with running_hub(
        mlx=Repo(dict(MLX)), gguf=Repo({**GGUF, "sub/one.gguf": b"GGUF1"}), both=Repo(BOTH)
    ) as hub:
        yield SourcePolicy(repositories=("org/*",), hub_endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("source", "recorded", "expected"),
    [
        ("org/mlx", f"org/mlx@{COMMIT}", {CONFIG_NAME, "adapters.safetensors"}),
        ("org/both", f"org/both@{COMMIT}", {CONFIG_NAME, WEIGHTS_NAME}),
        ("org/gguf@v1/a-f16.gguf", f"org/gguf@{COMMIT}/a-f16.gguf", {"a-f16.gguf"}),
        ("org/gguf/sub/one.gguf", f"org/gguf@{COMMIT}/sub/one.gguf", {"one.gguf"}),
        ("org/gguf/sub", f"org/gguf@{COMMIT}/sub", {"one.gguf"}),
    ],
)
def test_the_hub(hub: SourcePolicy, tmp_path: Path, source: str, recorded: str, expected: set[str]) -> None:
    assert fetch(f"hf://{source}", tmp_path, hub) == f"hf://{recorded}"
    assert names(tmp_path) == expected


def test_the_hub_without_the_file(hub: SourcePolicy, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing):
        fetch("hf://org/gguf/none.gguf", tmp_path, hub)
    with pytest.raises(ArtifactError, match="name one of them"):
        fetch("hf://org/gguf", tmp_path, hub)
    assert find("gguf", ["hf://org/{name}/a-q8.gguf"], hub) == "hf://org/gguf/a-q8.gguf"
    assert find("gguf", ["hf://org/{name}/none.gguf"], hub) is None


@pytest.fixture
def memory() -> Iterator[SourcePolicy]:
    files = fsspec.filesystem("memory")
    for folder, content in (("mlx", MLX), ("gguf", GGUF), ("plain", {"adapter.gguf": b"GGUF"})):
        for name, data in content.items():
            files.pipe(f"/storage/{folder}/{name}", data)
    yield SourcePolicy(urls=("memory://storage/",))
    files.store.clear()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mlx", {CONFIG_NAME, "adapters.safetensors"}),
        ("gguf/a-q8.gguf", {"a-q8.gguf"}),
        ("plain", {"adapter.gguf"}),
    ],
)
def test_a_storage_that_is_not_listed(
    memory: SourcePolicy, tmp_path: Path, source: str, expected: set[str]
) -> None:
    url = f"memory://storage/{source}"
    assert fetch(url, tmp_path, memory) == url
    assert names(tmp_path) == expected
    assert find("x", [url], memory) == url
    with pytest.raises(SourceMissing):
        fetch("memory://storage/gguf/none.gguf", tmp_path, memory)
