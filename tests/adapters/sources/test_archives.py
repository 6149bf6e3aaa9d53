"""Uploaded archives: what is sound comes out, whole and of one folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import ArtifactError, SourceMissing
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.archives import unpack
from manylora.adapters.sources.folders import check_subfolder
from manylora.adapters.sources.policy import SourcePolicy
from tests.support.archives import POLICY, SOUND, Build, every_build, outcome, refusal, tar, zipped

MANY = SourcePolicy(max_bytes=32 << 20, max_files=100)


@every_build
@pytest.mark.parametrize("folder", ["", "my-adapter/", "./", "./my-adapter/", "ä" * 60 + "/"])
def test_an_adapter_at_the_top_or_in_one_directory(tmp_path: Path, build: Build, folder: str) -> None:
    files = {f"{folder}{name}": text for name, text in SOUND.items()}
    files[f"{folder}runs/events.out"] = b"deeper files are not kept"
    kept = outcome(build(files), tmp_path / "into")
    assert kept == {CONFIG_NAME: b"{}", WEIGHTS_NAME: SOUND[WEIGHTS_NAME]}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / "into").iterdir())


def test_a_directory_packed_by_tar_and_by_zip(tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    for name, text in SOUND.items():
        (source / name).write_bytes(text)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(source, "adapter")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as folder:
        folder.mkdir("adapter")
        folder.write(source / CONFIG_NAME, f"adapter/{CONFIG_NAME}")
        folder.write(source / WEIGHTS_NAME, f"adapter/{WEIGHTS_NAME}")
    for name in ("a.tar.gz", "a.zip"):
        kept = outcome((tmp_path / name).read_bytes(), tmp_path / f"into-{name}")
        assert kept.keys() == {CONFIG_NAME, WEIGHTS_NAME}


@every_build
def test_two_adapters(tmp_path: Path, build: Build) -> None:
    files = {f"one/{CONFIG_NAME}": b"{}", f"two/{CONFIG_NAME}": b"{}"}
    assert "more than one adapter: in 'one/', 'two/'" in refusal(build(files), tmp_path)


def checkpoints(prefix: str, *, root: bool) -> dict[str, bytes]:
    """What a trainer leaves: perhaps an adapter at the end, two checkpoints, and files of its own."""
    files = {f"{prefix}README.md": b"x", f"{prefix}training_args.bin": b"pickle"}
    for step in (200, 400, 1000):
        folder = f"{prefix}checkpoint-{step}/"
        files |= {f"{folder}{CONFIG_NAME}": b"{}", f"{folder}{WEIGHTS_NAME}": str(step).encode()}
        files |= {f"{folder}optimizer.pt": b"pickle", f"{folder}rng_state.pth": b"pickle"}
        files |= {f"{folder}tokenizer.json": b"{}"}
    if root:
        files |= {f"{prefix}{CONFIG_NAME}": b"{}", f"{prefix}{WEIGHTS_NAME}": b"root"}
    return files


@every_build
@pytest.mark.parametrize("prefix", ["", "run/", "./run/", "a/b/"])
def test_the_root_wins_over_checkpoints(tmp_path: Path, build: Build, prefix: str) -> None:
    kept = outcome(build(checkpoints(prefix, root=True)), tmp_path / "into", MANY)
    assert kept == {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"root"}
    last_first = dict(reversed(checkpoints(prefix, root=True).items()))
    assert outcome(build(last_first), tmp_path / "again", MANY) == kept


@every_build
@pytest.mark.parametrize("prefix", ["", "run/"])
def test_checkpoints_without_a_root_are_named(tmp_path: Path, build: Build, prefix: str) -> None:
    content = build(checkpoints(prefix, root=False))
    told = refusal(content, tmp_path, MANY)
    folders = [f"'{prefix}checkpoint-{step}/'" for step in (200, 400, 1000)]
    assert f"more than one adapter: in {', '.join(folders)}: pass subfolder=" in told


@every_build
@pytest.mark.parametrize("prefix", ["", "run/"])
@pytest.mark.parametrize(
    "asked", ["checkpoint-400", "checkpoint-400/", "./checkpoint-400", "{}checkpoint-400"]
)
def test_a_subfolder_is_taken(tmp_path: Path, build: Build, prefix: str, asked: str) -> None:
    content, into = build(checkpoints(prefix, root=True)), tmp_path / "into"
    into.mkdir()
    unpack(io.BytesIO(content), into, MANY, check_subfolder(asked.format(prefix)))
    assert (into / WEIGHTS_NAME).read_bytes() == b"400"
    assert {path.name for path in into.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME, "tokenizer.json"}


def test_a_subfolder_that_is_not_there_or_is_several(tmp_path: Path) -> None:
    content = io.BytesIO(zipped(checkpoints("", root=True)))
    with pytest.raises(ArtifactError, match="no adapter in the subfolder 'x'; there are adapters in"):
        unpack(content, tmp_path, MANY, "x")
    twice = {f"{run}/best/{name}": b"{}" for run in "ab" for name in (CONFIG_NAME, WEIGHTS_NAME)}
    with pytest.raises(ArtifactError, match="'best' is the name of several folders: in 'a/best/', 'b/best/'"):
        unpack(io.BytesIO(zipped(twice)), tmp_path, MANY, "best")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "subfolder", ["..", "a/../..", "/etc", "C:\\x", "a\nb", "x" * 2000, "..\\a", "\\\\a"]
)
def test_hostile_subfolders(subfolder: str) -> None:
    with pytest.raises(SourceMissing, match="not the name of a subfolder"):
        check_subfolder(subfolder)


JUNK = {
    "__MACOSX/._adapter_config.json": b"x", "__MACOSX/adapter/._adapter_model.safetensors": b"x",
    "__MACOSX/adapter/adapter_config.json": b"x", "__MACOSX/adapter/adapter_model.safetensors": b"x",
    ".DS_Store": b"x", "adapter/.DS_Store": b"x", "adapter/._adapter_model.bin": b"x", "Thumbs.db": b"x",
    "desktop.ini": b"x", "adapter/._tokenizer.json": b"x", "._x.bin": b"x",
}  # fmt: skip


@every_build
@pytest.mark.parametrize("folder", ["", "adapter/", "adapter\\"])
def test_what_file_managers_leave_is_passed_over(tmp_path: Path, build: Build, folder: str) -> None:
    files = JUNK | {f"{folder}{name}": text for name, text in SOUND.items()}
    assert outcome(build(files), tmp_path / "into").keys() == {CONFIG_NAME, WEIGHTS_NAME}


@every_build
def test_paths_as_windows_writes_them(tmp_path: Path, build: Build) -> None:
    files = {name.replace("/", "\\"): text for name, text in checkpoints("run/", root=True).items()}
    kept = outcome(build(files), tmp_path / "into", MANY)
    assert kept[WEIGHTS_NAME] == b"root"
    mixed = {f"run\\{CONFIG_NAME}": b"{}", f"run/{CONFIG_NAME}": b"[]"}
    (tmp_path / "more").mkdir()
    assert "twice" in refusal(build(mixed), tmp_path / "more")


def test_a_directory_that_only_its_slash_tells(tmp_path: Path) -> None:
    content = zipped({"run\\": b"", "run\\deeper\\": b"", **{f"run\\{k}": v for k, v in SOUND.items()}})
    assert outcome(content, tmp_path / "into").keys() == {CONFIG_NAME, WEIGHTS_NAME}


folders = st.sampled_from(["", "a/", "b/", "a/c/", "a/c/d/", "b/c/", "__MACOSX/a/"])


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(folders, st.booleans(), max_size=5), folders, st.sampled_from([tar, zipped]))
def test_one_folder_is_taken_whole_or_all_are_named(
    tmp_path_factory: pytest.TempPathFactory, places: dict[str, bool], asked: str, build: Build
) -> None:
    """Whichever folders hold a whole adapter (true) or a config alone, nothing of two is ever mixed."""
    files = {"notes.txt": b"x"}
    for folder, whole in places.items():
        files |= {f"{folder}{CONFIG_NAME}": folder.encode()} | (
            {f"{folder}{WEIGHTS_NAME}": folder.encode()} if whole else {}
        )
    into = tmp_path_factory.mktemp("into")
    real = {folder for folder in places if not folder.startswith("__MACOSX")}
    try:
        unpack(io.BytesIO(build(files)), into, POLICY, asked.rstrip("/"))
    except ArtifactError as error:
        told = str(error)
        assert (
            "no adapter" in told
            or "several folders" in told
            or all(
                repr(folder) in told or any(folder.startswith(o) for o in real if o != folder)
                for folder in real
                if places[folder]
            )
        )
        assert not list(into.iterdir())
        return
    taken = {path.read_bytes().decode() for path in into.iterdir()}
    assert len(taken) == 1
    assert taken <= real
    if not asked and "" in real:
        assert taken == {""}
