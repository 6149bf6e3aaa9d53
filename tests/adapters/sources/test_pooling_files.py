"""How an adapter pools is said by a file in a folder of its own, which comes along from every source."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pytest

from manylora.adapters.errors import ArtifactError, SourceForbidden
from manylora.adapters.format.files import CONFIG_NAME, MODULES_NAME, POOLING_NAME, WEIGHTS_NAME
from manylora.adapters.sources.archives import unpack
from manylora.adapters.sources.fetching import fetch, resolve_directory
from manylora.adapters.sources.policy import SourcePolicy
from tests.support.archives import POLICY, Build, every_build, zipped
from tests.support.fake_hub import Repository, running_hub

FILES = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights", MODULES_NAME: b"[]", POOLING_NAME: b'{"own": 1}'}
OTHERS = {"1_Pooling/notes.txt": b"x", "2_Dense/config.json": b"x", "x/1_Pooling/config.json": b"another's"}


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in {**FILES, **OTHERS}.items():
        place = tmp_path / "root" / "one" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (tmp_path / "into").mkdir()
    return tmp_path / "root"


@every_build
@pytest.mark.parametrize("folder", ["", "./", "some/"])
def test_from_an_archive(build: Build, folder: str, tmp_path: Path) -> None:
    packed = build({f"{folder}{name}": content for name, content in {**FILES, **OTHERS}.items()})
    unpack(io.BytesIO(packed), tmp_path, POLICY)
    assert files_in(tmp_path) == FILES


def test_of_the_folder_that_is_asked_for(tmp_path: Path) -> None:
    files = {
        f"{step}/{name}": content + step.encode() for step in ("a", "b") for name, content in FILES.items()
    }
    unpack(io.BytesIO(zipped(files)), tmp_path, POLICY, "b")
    assert files_in(tmp_path) == {name: content + b"b" for name, content in FILES.items()}


@pytest.mark.parametrize(
    "path", ["../1_Pooling/config.json", "/1_Pooling/config.json", "a/../../1_Pooling/config.json"]
)
def test_a_path_that_leads_out_of_an_archive(path: str, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ArtifactError, match="unsafe path"):
        unpack(io.BytesIO(zipped({**FILES, path: b"{}"})), into, POLICY)
    assert not (tmp_path / "1_Pooling").exists()


def test_from_a_directory(root: Path, tmp_path: Path) -> None:
    fetch("one", tmp_path / "into", SourcePolicy(roots=(root,)))
    assert files_in(tmp_path / "into") == FILES


@pytest.mark.parametrize("linked", ["1_Pooling", POOLING_NAME])
def test_a_link_out_of_the_roots(linked: str, root: Path, tmp_path: Path) -> None:
    """The folder, or the file in it."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "config.json").write_text('{"secret": 1}')
    place = root / "one" / linked
    (root / "one" / POOLING_NAME).unlink()
    (root / "one" / "1_Pooling" / "notes.txt").unlink()
    if linked == "1_Pooling":
        place.rmdir()
    place.symlink_to(secret if linked == "1_Pooling" else secret / "config.json")
    with pytest.raises(SourceForbidden):
        resolve_directory(str(root / "one"), [root])
    with pytest.raises(SourceForbidden):
        fetch("one", tmp_path / "into", SourcePolicy(roots=(root,)))


def test_from_storage(tmp_path: Path) -> None:
    storage = fsspec.filesystem("memory")
    for name, content in {**FILES, **OTHERS}.items():
        storage.pipe(f"/pooled/one/{name}", content)
    try:
        fetch("memory://pooled/one", tmp_path, SourcePolicy(urls=("memory://pooled/",)))
    finally:
        storage.store.clear()
    assert files_in(tmp_path) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "/sub"])
def test_from_the_hub(folder: str, tmp_path: Path) -> None:
    files = {f"{folder}/{name}".lstrip("/"): content for name, content in {**FILES, **OTHERS}.items()}
    with running_hub(one=Repository(files)) as hub:
        policy = SourcePolicy(repositories=("org/*",), hub_endpoint=hub.endpoint)
        fetch(f"hf://org/one{folder}", tmp_path, policy)
    assert files_in(tmp_path) == FILES
