"""Revisions on disk: atomic, content-addressed, shared by processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch

from manylora.adapters.errors import AdapterNotFound, ArtifactError, StoreError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.files import (
    CONFIG_NAME,
    MAX_TEXT_BYTES,
    POOLING_NAMES,
    TEXT_NAMES,
    WEIGHTS_NAME,
)
from manylora.adapters.format.pooling import Pooling, PoolingConfig, read_pooling, write_pooling
from manylora.adapters.store.store import RevisionStore
from tests.support.adapters import write_adapter
from tests.support.paths import ROOT
from tests.support.publishing import add_revision, digest_of

BASE = BaseModel(
    name="base",
    architecture="LlamaForCausalLM",
    model_type="llama",
    fingerprint="0",
    modules={n: TargetModule(n, 8, 12) for n in ("model.layers.0.q_proj", "model.layers.0.v_proj")},
    others=frozenset({"lm_head"}),
)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", BASE)


def test_publish_and_read_back(tmp_path: Path, adapter: Path) -> None:
    source = read_artifact(adapter, BASE, Limits(64, 1 << 20))
    (adapter / "README.md").write_text("not part of the artifact")
    with RevisionStore(tmp_path / "store") as store:
        digest, path = add_revision(store, adapter)
        assert digest == source.digest
        assert store.path(digest) == path
        assert store.digests() == [digest]
        assert sorted(file.name for file in path.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
        copy = read_artifact(path, BASE, Limits(64, 1 << 20))
    assert copy.digest == digest
    for name, weights in source.delta.items():
        assert torch.equal(weights.a, copy.delta[name].a)


def test_publishing_twice_changes_nothing(tmp_path: Path, adapter: Path) -> None:
    with RevisionStore(tmp_path / "store") as store:
        first = add_revision(store, adapter)
        inode = (first[1] / WEIGHTS_NAME).stat().st_ino
        assert add_revision(store, adapter) == first
        assert (first[1] / WEIGHTS_NAME).stat().st_ino == inode
        assert no_temporaries(store)


@pytest.mark.parametrize("fault", ["gone", "cut", "changed"])
def test_publishing_what_is_damaged_brings_it_back(tmp_path: Path, adapter: Path, fault: str) -> None:
    with RevisionStore(tmp_path / "store") as store:
        digest, path = add_revision(store, adapter)
        weights = (path / WEIGHTS_NAME).read_bytes()
        if fault == "gone":
            (path / WEIGHTS_NAME).unlink()
            assert not store.has(digest)
        else:
            (path / WEIGHTS_NAME).write_bytes(weights[:-1] + (b"" if fault == "cut" else b"\x7f"))
        assert add_revision(store, adapter) == (digest, path)
        assert store.has(digest)
        assert (path / WEIGHTS_NAME).read_bytes() == weights
        assert no_temporaries(store)


def test_publishing_at_the_same_time(tmp_path: Path, adapter: Path) -> None:
    with RevisionStore(tmp_path / "store") as store, ThreadPoolExecutor(8) as pool:
        published = set(pool.map(lambda _: add_revision(store, adapter), range(16)))
        assert len(published) == 1
        assert no_temporaries(store)


def test_the_digest_is_of_the_content(tmp_path: Path, adapter: Path) -> None:
    config = json.loads((adapter / CONFIG_NAME).read_text())
    with RevisionStore(tmp_path / "store") as store:
        digest, _ = add_revision(store, adapter)
        (adapter / CONFIG_NAME).write_text(json.dumps(dict(reversed(config.items())), indent=4))
        assert add_revision(store, adapter)[0] == digest  # the same config, written otherwise
        (adapter / CONFIG_NAME).write_text(json.dumps(config | {"lora_alpha": 17}))
        assert add_revision(store, adapter)[0] != digest
        assert len(store.digests()) == 2


def test_discarding_says_what_it_freed(tmp_path: Path, adapter: Path) -> None:
    with RevisionStore(tmp_path / "store") as store:
        digest, path = add_revision(store, adapter)
        size = sum(file.stat().st_size for file in path.iterdir())
        assert store.discard([digest], set) == {digest: size}
        assert store.digests() == []
        assert no_temporaries(store)
        assert store.discard([digest], set) == {}


@pytest.mark.parametrize("digest", ["", "..", "../x", "a" * 63, "A" * 64, "/etc", "0" * 64, "\0"])
def test_unknown_and_hostile_digests(tmp_path: Path, digest: str) -> None:
    with RevisionStore(tmp_path / "store") as store:
        with pytest.raises(AdapterNotFound):
            store.path(digest)
        assert store.discard([digest], set) == {}


def test_the_files_of_text_are_kept_and_change_the_digest(tmp_path: Path, adapter: Path) -> None:
    with RevisionStore(tmp_path / "store") as store:
        plain, _ = add_revision(store, adapter)
        seen = {plain}
        for name in TEXT_NAMES:
            (adapter / name).write_text("text")
            digest, path = add_revision(store, adapter)
            with pytest.raises(ArtifactError):  # it is not what its name says, but covered all the same
                read_artifact(path, BASE, Limits(64, 1 << 20))
            assert digest == digest_of(path)
            assert (path / name).read_text() == "text"
            seen.add(digest)
        assert len(seen) == 1 + len(TEXT_NAMES)
        assert sorted(file.name for file in path.iterdir()) == sorted(
            {CONFIG_NAME, WEIGHTS_NAME, *TEXT_NAMES}
        )


def test_the_pooling_of_one_that_embeds_is_kept_and_changes_the_digest(tmp_path: Path, adapter: Path) -> None:
    """What lies in a folder is kept in it, and everything else there is dropped."""
    write_pooling(PoolingConfig(Pooling.MEAN), 8, adapter)
    (adapter / "1_Pooling" / "notes.txt").write_text("not part of the artifact")
    with RevisionStore(tmp_path / "store") as store:
        writes, path = add_revision(store, adapter)
        assert sorted(file.name for file in path.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
        config = json.loads((adapter / CONFIG_NAME).read_text())
        (adapter / CONFIG_NAME).write_text(json.dumps(config | {"task_type": "FEATURE_EXTRACTION"}))
        seen = {writes}
        for pooling in (PoolingConfig(Pooling.MEAN), PoolingConfig(Pooling.LAST)):
            write_pooling(pooling, 8, adapter)
            digest, path = add_revision(store, adapter)
            kept = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
            assert kept == {CONFIG_NAME, WEIGHTS_NAME, *POOLING_NAMES}
            assert digest == digest_of(path)
            assert read_pooling(path) == pooling
            seen.add(digest)
        assert len(seen) == 3
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert store.discard([digest], set) == {digest: size}
        assert no_temporaries(store)


def test_files_of_text_are_bounded(tmp_path: Path, adapter: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        with (adapter / name).open("wb") as file:
            file.truncate(MAX_TEXT_BYTES // 2 + 1)
    with RevisionStore(tmp_path / "store") as store:
        with pytest.raises(ArtifactError, match=r"vocab\.txt has"):
            add_revision(store, adapter)
        assert no_temporaries(store)
    with pytest.raises(ArtifactError, match=r"vocab\.txt has"):
        read_artifact(adapter, BASE, Limits(64, 1 << 20))


OPENER = """
import sys
from pathlib import Path
from manylora.adapters.store.store import RevisionStore
store = RevisionStore(Path(sys.argv[1]))
with store.temporary() as temporary:
    (temporary / "half").write_text("")
    print(store.owner, temporary, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_living_process_keeps_its_temporaries_and_a_killed_one_does_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OPENER, str(tmp_path / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        owner, temporary = process.stdout.readline().split()
        with RevisionStore(tmp_path / "store") as store, store.temporary() as own:
            assert store.alive(owner)
            assert (Path(temporary) / "half").exists()
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not store.alive(owner)
            with RevisionStore(tmp_path / "store"):
                assert not Path(temporary).exists()
                assert own.exists()
        assert sorted(path.name for path in store.root.iterdir()) == [".identity", ".lock"]


@pytest.mark.parametrize("owner", ["", "..", "0" * 16, "lock", "0" * 15 + "/"])
def test_unknown_owners_are_dead(tmp_path: Path, owner: str) -> None:
    with RevisionStore(tmp_path / "store") as store:
        assert store.alive(store.owner)
        assert not store.alive(owner)
        assert not (store.root / f".live-{owner}").exists()


def test_two_stores_on_one_directory(tmp_path: Path, adapter: Path) -> None:
    with RevisionStore(tmp_path / "store") as one, RevisionStore(tmp_path / "store") as two:
        assert one.identity == two.identity
        assert one.owner != two.owner
        digest, path = add_revision(one, adapter)
        assert two.path(digest) == path
        assert two.discard([digest], set).keys() == {digest}
        with pytest.raises(AdapterNotFound):
            one.path(digest)


def test_a_revision_is_not_discarded_between_its_rename_and_its_registration(
    tmp_path: Path, adapter: Path
) -> None:
    registered: set[str] = set()
    with RevisionStore(tmp_path / "store") as store, ThreadPoolExecutor(1) as pool:
        with store.deletion_blocked():
            digest, path = add_revision(store, adapter)
            discarding = pool.submit(store.discard, None, lambda: registered)
            assert not wait([discarding], timeout=0.2).done
            registered.add(digest)
        assert discarding.result() == {}
        assert path.exists()
        registered.clear()
        assert store.discard(None, lambda: registered).keys() == {digest}


def test_publishing_and_discarding_at_the_same_time(tmp_path: Path, adapter: Path) -> None:
    """However they interleave, a registered revision is there."""
    registered: set[str] = set()

    def publish(_: int) -> bool:
        with store.deletion_blocked():
            digest, path = add_revision(store, adapter)
            registered.add(digest)
            return path.exists()

    with RevisionStore(tmp_path / "store") as store, ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            registered.clear()
            published = pool.map(publish, range(2))
            discarded = [pool.submit(store.discard, None, lambda: registered) for _ in range(2)]
            assert all(published)
            assert all(store.path(digest).exists() for digest in registered)
            assert wait(discarded, timeout=60).not_done == set()


def test_half_published_revisions_are_removed(tmp_path: Path, adapter: Path) -> None:
    with RevisionStore(tmp_path / "store") as store:
        digest, _ = add_revision(store, adapter)
    half = tmp_path / "store" / ".tmp-dead"
    half.mkdir()
    (half / WEIGHTS_NAME).write_bytes(b"half")
    with RevisionStore(tmp_path / "store") as store:
        assert not half.exists()
        assert store.digests() == [digest]


def test_a_failed_copy_leaves_nothing(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with RevisionStore(tmp_path / "store") as store:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            add_revision(store, adapter)
        assert store.digests() == []
        assert no_temporaries(store)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_or_odd_file_is_a_fault(tmp_path: Path, adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with RevisionStore(tmp_path / "store") as store:
        with pytest.raises(ArtifactError, match=f"no {name}"):
            add_revision(store, adapter)
        os.mkfifo(adapter / name)
        with pytest.raises(ArtifactError, match="not a regular file"):
            add_revision(store, adapter)
        assert no_temporaries(store)


def test_the_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="can't be opened"):
        RevisionStore(tmp_path / "store")


def no_temporaries(store: RevisionStore) -> bool:
    return not [entry for entry in store.root.iterdir() if entry.name.startswith(".tmp-")]
