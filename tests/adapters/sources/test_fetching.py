"""Fetching from directories of this machine, and what all sources share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import manylora.adapters.sources.fetching as fetching_module
from manylora.adapters.errors import (
    AdapterNameError,
    ArtifactError,
    SourceForbidden,
    SourceMissing,
    SourceUnreachable,
    StoreError,
)
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.fetching import SourcePolicy, fetch, find, policy_for

FILES = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 1000, "tokenizer.json": b"[]"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the adapter "one"; "secret" lies beside the root."""
    for name in ("root/one", "secret"):
        (tmp_path / name).mkdir(parents=True)
        for file, content in {**FILES, "optimizer.pt": b"x", "notes.txt": b"x"}.items():
            (tmp_path / name / file).write_bytes(content)
    return tmp_path / "root"


def fetched(source: str, policy: SourcePolicy, into: Path) -> dict[str, bytes]:
    into.mkdir()
    fetch(source, into, policy)
    return {path.name: path.read_bytes() for path in into.iterdir()}


@pytest.mark.parametrize(
    "source", ["one", "{root}/one", "file://{root}/one", "file://localhost{root}/%6fne/"]
)
def test_paths_and_file_urls(root: Path, source: str) -> None:
    assert fetched(source.format(root=root), SourcePolicy(roots=(root,)), root / "into") == FILES


def test_progress(root: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    (root / "into").mkdir()
    source = fetch("one", root / "into", SourcePolicy(roots=(root,)), lambda *now: seen.append(now))
    total = sum(len(content) for content in FILES.values())
    assert source == "one"
    assert seen[-1] == (total, total)


@pytest.mark.parametrize(
    "source",
    [
        "../secret",
        "file://{parent}/secret",
        "file://{root}/../secret",
        "file://{root}/%2e%2e/secret",
        "FILE://{parent}/secret",
        "local://{parent}/secret",
        "simplecache::file://{parent}/secret",
        "filecache::{parent}/secret",
        "zip://{parent}/secret",
        "zip://adapter::file://{parent}/secret.zip",
        "dir://x::file://{parent}/secret",
        "reference://{parent}/secret",
        "file:{parent}/secret",
        "file://elsewhere{root}/one",
        "file://{root}/one?x",
        "file://[{root}/one",
        "memory://secret/one",
        "s3://bucket/one",
        "hf://org/secret",
        "http://127.0.0.1/one",
        "unknown://x/y",
        "\0",
        "",
    ],
)
def test_what_the_policy_does_not_allow(root: Path, source: str) -> None:
    policy = SourcePolicy(roots=(root,), urls=("local://", "file://", "zip://", "simplecache::file://"))
    with pytest.raises((SourceForbidden, SourceMissing)) as error:
        fetched(source.format(root=root, parent=root.parent), policy, root / "into")
    assert list((root / "into").iterdir()) == []
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_link_that_leads_out(root: Path, name: str) -> None:
    (root / "one" / name).unlink()
    (root / "one" / name).symlink_to(root.parent / "secret" / name)
    with pytest.raises(SourceForbidden, match=name):
        fetched("one", SourcePolicy(roots=(root,)), root / "into")


def test_a_link_exchanged_after_it_was_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the file that was opened, not what its path led to before."""

    def exchange(*_: object) -> None:
        (root / "one" / WEIGHTS_NAME).unlink()
        (root / "one" / WEIGHTS_NAME).symlink_to(root.parent / "secret" / WEIGHTS_NAME)

    monkeypatch.setattr(fetching_module, "check_found", exchange)
    with pytest.raises(SourceForbidden, match="leads out"):
        fetched("one", SourcePolicy(roots=(root,)), root / "into")
    assert list((root / "into").iterdir()) == []


def test_a_link_inside_becomes_a_file(root: Path) -> None:
    (root / "one" / WEIGHTS_NAME).rename(root / "blob")
    (root / "one" / WEIGHTS_NAME).symlink_to("../blob")
    assert fetched("one", SourcePolicy(roots=(root,)), root / "into") == FILES
    assert not (root / "into" / WEIGHTS_NAME).is_symlink()


def test_limits_and_oddities(root: Path) -> None:
    with pytest.raises(ArtifactError, match="1,000 bytes"):
        fetched("one", SourcePolicy(roots=(root,), max_bytes=1000), root / "small")
    (root / "one" / WEIGHTS_NAME).unlink()
    os.mkfifo(root / "one" / WEIGHTS_NAME)
    with pytest.raises(ArtifactError, match="not a regular file"):
        fetched("one", SourcePolicy(roots=(root,)), root / "fifo")
    (root / "one" / WEIGHTS_NAME).unlink()
    with pytest.raises(ArtifactError, match=r"'optimizer\.pt' is a pickle"):
        fetched("one", SourcePolicy(roots=(root,)), root / "pickle")
    (root / "empty").mkdir()
    with pytest.raises(SourceMissing, match="neither"):
        fetched("empty", SourcePolicy(roots=(root,)), root / "nothing")


def test_the_target_can_not_be_written(root: Path) -> None:
    (root / "into").mkdir()
    (root / "into" / CONFIG_NAME).symlink_to(root.parent / "outside")
    with pytest.raises(StoreError):
        fetch("one", root / "into", SourcePolicy(roots=(root,)))
    assert not (root.parent / "outside").exists()


def test_find(root: Path) -> None:
    policy = SourcePolicy(roots=(root,))
    templates = [f"{root}/none/{{name}}", f"file://{root}/{{name}}", "{name}"]
    assert find("one", templates, policy) == f"file://{root}/one"
    assert find("two", templates, policy) is None
    assert find("a::b", templates, policy) is None
    for name in ("../secret", "", "a//b", "one\n"):
        with pytest.raises(AdapterNameError):
            find(name, templates, policy)
    with pytest.raises(SourceUnreachable):
        find("two", ["nonsense://x/{name}"], SourcePolicy(urls=("nonsense://x",)))


def test_what_sources_need_is_allowed() -> None:
    templates = [
        "/srv/a/{name}",
        "file:///srv/b/x-{name}",
        "hf://org/{name}@v1",
        "hf://acme/all/{name}",
        "s3://bucket/pre/{name}/latest",
    ]
    policy = policy_for(templates, SourcePolicy(roots=(Path("/own"),), max_bytes=7))
    assert policy.roots == (Path("/own"), Path("/srv/a"), Path("/srv/b"))
    assert policy.repositories == ("org/*", "acme/all")
    assert policy.urls == ("s3://bucket/pre",)
    assert policy.max_bytes == 7


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("./:%2\0~$é\udcffonesecrtilpzm"), max_size=40), st.sampled_from(["", "file://"])
)
def test_any_source_is_inside_or_refused(root: Path, text: str, start: str) -> None:
    into = root.parent / "into"
    into.mkdir(exist_ok=True)
    for path in into.iterdir():
        path.unlink()
    (root.parent / "secret" / CONFIG_NAME).write_bytes(b"secret")
    try:
        fetch(start + text, into, SourcePolicy(roots=(root,)))
    except (SourceForbidden, SourceMissing):
        return
    assert (into / CONFIG_NAME).read_bytes() == b"{}"
