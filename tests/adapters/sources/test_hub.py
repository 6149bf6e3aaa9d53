"""Fetching from the Hub, against a local server that speaks its endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from manylora.adapters.errors import ArtifactError, SourceForbidden, SourceMissing, SourceUnreachable
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.fetching import SourcePolicy, fetch, find
from tests.support.fake_hub import COMMIT, FakeHub, Repository, running_hub

FILES = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 1000}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    more = {"README.md": b"x" * 5000, "optimizer.pt": b"x", "sub/checkpoint/x.json": b"x"}
    with running_hub(
        one=Repository({**FILES, **more, **{f"sub/{name}": b"sub" for name in FILES}}),
        gated=Repository(dict(FILES), gated=True),
        pickled=Repository({CONFIG_NAME: b"{}", "adapter_model.bin": b"x"}),
        other=Repository({"model.safetensors": b"x"}),
        liar=Repository(dict(FILES), sizes={WEIGHTS_NAME: 5}),
    ) as running:
        yield running


def policy(hub: FakeHub, max_bytes: int = 1 << 20) -> SourcePolicy:
    return SourcePolicy(repositories=("org/*",), hub_endpoint=hub.endpoint, max_bytes=max_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["", "@main", "@v1", "@feature%2Fx", f"@{COMMIT}"])
def test_a_repository_at_its_commit(hub: FakeHub, tmp_path: Path, at: str) -> None:
    seen: list[tuple[int, int | None]] = []
    source = fetch(f"hf://org/one{at}", tmp_path, policy(hub), lambda *now: seen.append(now))
    assert source == f"hf://org/one@{COMMIT}"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
    assert seen[-1] == (7002, 7002)
    downloads = [path for path in hub.asked if "/resolve/" in path]
    assert downloads == [f"/org/one/resolve/{COMMIT}/{name}" for name in sorted(FILES)], "no other file"


def test_a_subfolder(hub: FakeHub, tmp_path: Path) -> None:
    assert fetch("hf://org/one@v1/sub", tmp_path, policy(hub)) == f"hf://org/one@{COMMIT}/sub"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(FILES, b"sub")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("hf://org/gated", SourceForbidden, "gated: accept its conditions"),
        ("hf://org/none", SourceMissing, "no repository org/none"),
        ("hf://org/one@v2", SourceMissing, "no revision 'v2'"),
        ("hf://org/other", SourceMissing, "no adapter"),
        ("hf://org/one/deeper", SourceMissing, "no adapter"),
        ("hf://org/pickled", ArtifactError, "is a pickle"),
        ("hf://else/one", SourceForbidden, "not among those allowed"),
        ("hf://organization/one", SourceForbidden, "not among those allowed"),
        ("hf://org", SourceMissing, "not of the form"),
        ("hf://org/one@../../x", SourceMissing, "not of the form"),
        ("hf://org/one@a%2F..%2Fb", SourceMissing, "not of the form"),
        ("hf://org/one/../two", SourceMissing, "not of the form"),
        ("hf://org/../one", SourceMissing, "not of the form"),
        ("hf://user:secret@org/one", SourceMissing, "not of the form"),
    ],
)
def test_refusals(hub: FakeHub, tmp_path: Path, source: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        fetch(source, tmp_path, policy(hub))
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in hub.asked if "/resolve/" in path]


def test_sizes_are_capped_before_and_during_the_download(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="more than 1,000 bytes"):
        fetch("hf://org/one", tmp_path, policy(hub, max_bytes=1000))
    assert not [path for path in hub.asked if "/resolve/" in path], "refused by what was announced"
    with pytest.raises(ArtifactError, match="more than 1,000 bytes"):
        fetch("hf://org/liar", tmp_path, policy(hub, max_bytes=1000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_nobody_answers_and_offline(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = SourcePolicy(repositories=("org/*",), hub_endpoint="http://127.0.0.1:1")
    with pytest.raises(SourceUnreachable, match="can't be reached"):
        fetch("hf://org/one", tmp_path, nobody)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnreachable, match="HF_HUB_OFFLINE"):
        fetch("hf://org/one", tmp_path, policy(hub))


def test_the_token_goes_to_the_hub_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running_hub(one=Repository(dict(FILES))) as storage:
        sent_away = Repository(dict(FILES), elsewhere=storage.endpoint.replace("127.0.0.1", "localhost"))
        with running_hub(one=sent_away) as hub:
            fetch("hf://org/one", tmp_path, policy(hub))
            assert hub.tokens == {"Bearer hf_secret"}
        assert storage.tokens == {None}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES


def test_find(hub: FakeHub) -> None:
    templates = ["hf://org/{name}"]
    assert find("one", templates, policy(hub)) == "hf://org/one"
    assert find("none", templates, policy(hub)) is None
    assert find("other", templates, policy(hub)) is None
    assert find("one:two", templates, policy(hub)) is None
    with pytest.raises(SourceUnreachable):
        find("one", templates, SourcePolicy(repositories=("org/*",), hub_endpoint="http://127.0.0.1:1"))
