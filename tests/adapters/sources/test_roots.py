"""Loading reads from inside the configured roots and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import SourceForbidden, SourceMissing
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.fetching import check, resolve_directory
from manylora.adapters.sources.policy import SourcePolicy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the adapter "one"; "secret" lies beside the root."""
    for directory in (tmp_path / "root" / "one", tmp_path / "secret", tmp_path / "rootless"):
        directory.mkdir(parents=True)
        (directory / CONFIG_NAME).write_text("{}")
        (directory / WEIGHTS_NAME).write_bytes(b"")
    return tmp_path / "root"


def test_absolute_and_relative_paths(root: Path) -> None:
    assert resolve_directory(str(root / "one"), [root]) == root / "one"
    assert resolve_directory("one", [root]) == root / "one"
    assert resolve_directory("./one/", [root]) == root / "one"
    assert resolve_directory("one/../one", [root]) == root / "one"


def test_relative_paths_are_looked_up_in_every_root(root: Path) -> None:
    assert resolve_directory("one", [root.parent / "secret", root]) == root / "one"


def test_the_root_itself_is_allowed(root: Path) -> None:
    assert resolve_directory(str(root / "one"), [root / "one"]) == root / "one"


def test_no_roots_allow_nothing(root: Path) -> None:
    with pytest.raises(SourceForbidden, match="--adapter-root"):
        resolve_directory(str(root / "one"), [])


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "one/../../secret",
        "/etc",
        "/",
        "..",
        "missing/../../secret",
        "{parent}/rootless",
        "{parent}/none",
    ],
)
def test_paths_that_lead_out(root: Path, path: str) -> None:
    with pytest.raises(SourceForbidden) as error:
        resolve_directory(path.format(parent=root.parent), [root])
    assert "outside" in str(error.value)


def test_a_directory_link_that_leads_out(root: Path) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    with pytest.raises(SourceForbidden):
        resolve_directory("link", [root])


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_file_link_that_leads_out(root: Path, name: str) -> None:
    (root / "one" / name).unlink()
    (root / "one" / name).symlink_to(root.parent / "secret" / name)
    with pytest.raises(SourceForbidden, match=name):
        resolve_directory("one", [root])


def test_links_inside_the_roots_are_fine(root: Path) -> None:
    blobs = root / "blobs"  # as in the Hugging Face cache
    blobs.mkdir()
    (root / "one" / WEIGHTS_NAME).rename(blobs / "0f3a")
    (root / "one" / WEIGHTS_NAME).symlink_to(Path("..") / "blobs" / "0f3a")
    (root / "link").symlink_to("one")
    assert resolve_directory("link", [root]) == root / "one"


def test_a_root_may_be_a_link(root: Path) -> None:
    (root.parent / "alias").symlink_to(root)
    assert resolve_directory("one", [root.parent / "alias"]) == root / "one"


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
def test_what_is_no_path(root: Path, path: str) -> None:
    with pytest.raises(SourceMissing) as error:
        resolve_directory(path, [root])
    assert len(str(error.value)) < 300


def test_missing_and_not_a_directory(root: Path) -> None:
    (root / "file").write_text("")
    with pytest.raises(SourceMissing, match="no such file"):
        resolve_directory("two", [root])
    with pytest.raises(SourceMissing, match="not a directory"):
        resolve_directory("file", [root])
    with pytest.raises(SourceMissing):
        resolve_directory("x" * 300, [root])  # longer than a file name may be


def test_a_loop_of_links(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(SourceMissing):
        resolve_directory("a", [root])


def test_no_permission(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything, so chmod proves nothing
    with pytest.raises(SourceMissing, match="permission denied"):
        resolve_directory("one", [root])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("./\0~$é\udcffonesecretroot"), max_size=40))
def test_any_path_is_inside_or_refused(root: Path, path: str) -> None:
    try:
        found = resolve_directory(path, [root])
    except (SourceForbidden, SourceMissing) as error:
        str(error).encode()
    else:
        assert found.is_relative_to(root)


@pytest.mark.parametrize(
    "good", ["{root}/one", "one", "file://{root}/one", "hf://org/a@main", "s3://b/lora/x"]
)
def test_a_source_that_may_be_fetched(root: Path, good: str) -> None:
    policy = SourcePolicy(roots=(root,), repositories=("org/*",), urls=("s3://b/lora/",))
    check(good.replace("{root}", str(root)), policy)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("{root}/../secret", SourceForbidden),
        ("file://{root}/../secret", SourceForbidden),
        ("{root}/none", SourceMissing),
        ("hf://other/a", SourceForbidden),
        ("hf://org", SourceMissing),
        ("s3://b/other/x", SourceForbidden),
        ("s3://key:secret@b/lora/x", SourceForbidden),
        ("x::s3://b/lora/x", SourceMissing),
    ],
)
def test_a_source_that_may_not(root: Path, bad: str, error: type[Exception]) -> None:
    """Nobody is asked: neither the Hub nor the bucket exists."""
    policy = SourcePolicy(roots=(root,), repositories=("org/*",), urls=("s3://b/lora/",))
    with pytest.raises(error):
        check(bad.replace("{root}", str(root)), policy)
