"""Uploaded archives: what is sound comes out, what is hostile is refused and writes nothing elsewhere."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import ArtifactError, SourceMissing
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.archives import unpack
from manylora.adapters.sources.folders import check_subfolder
from manylora.adapters.sources.policy import SourcePolicy

POLICY = SourcePolicy(max_bytes=32 << 20, max_files=20)
MANY = SourcePolicy(max_bytes=32 << 20, max_files=100)
SOUND = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 1000, "README.md": b"not kept"}
Build = Callable[[Mapping[str, bytes]], bytes]


def tar(files: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


BUILDS: dict[str, Build] = {
    "tar": tar,
    "gnu tar": lambda files: tar(files, tarfile.GNU_FORMAT),
    "old tar": lambda files: tar(files, tarfile.USTAR_FORMAT),
    "tar.gz": lambda files: gzip.compress(tar(files)),
    "tar.gz in two members": lambda files: gzip.compress(tar(files)[:700]) + gzip.compress(tar(files)[700:]),
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
}
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def outcome(content: bytes, into: Path, policy: SourcePolicy = POLICY) -> dict[str, bytes]:
    into.mkdir()
    unpack(io.BytesIO(content), into, policy)
    return {path.name: path.read_bytes() for path in into.iterdir()}


def refusal(content: bytes, parent: Path, policy: SourcePolicy = POLICY) -> str:
    """Why an archive is refused; asserts that nothing but known names in one directory was written."""
    before = sorted(parent.iterdir())
    with pytest.raises(ArtifactError) as error:
        outcome(content, parent / "into", policy)
    assert sorted(parent.iterdir()) == sorted([*before, parent / "into"])
    assert {path.name for path in (parent / "into").rglob("*")} <= {CONFIG_NAME, WEIGHTS_NAME}
    assert len(str(error.value)) < 400
    return str(error.value)


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
@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "//x",
        "a/..",
        "..",
        "C:\\x",
        "C:x",
        "\\x",
        "\\\\server\\share\\x",
        "..\\x",
        "a\\..\\..\\x",
        "a/..\\x",
        "a\nb",
        "a\x7fb",
        "x" * 1100,
    ],
)
def test_unsafe_paths(tmp_path: Path, build: Build, path: str) -> None:
    if build is BUILDS["old tar"] and len(path) > 255:
        pytest.skip("this format can't hold such a path")
    assert "unsafe path" in refusal(build({**SOUND, path: b"x"}), tmp_path)
    (tmp_path / "more").mkdir()
    assert "unsafe path" in refusal(build({f"../../{CONFIG_NAME}": b"{}"}), tmp_path / "more")


def test_a_zip_name_with_a_nul(tmp_path: Path) -> None:
    content = zipped({f"{CONFIG_NAME}X.exe": b"{}"}).replace(b"jsonX", b"json\0")
    assert "unsafe path" in refusal(content, tmp_path)


@every_build
def test_names_twice(tmp_path: Path, build: Build) -> None:
    assert "twice" in refusal(build({CONFIG_NAME: b"{}", f"./{CONFIG_NAME}": b"[]"}), tmp_path)
    (tmp_path / "more").mkdir()
    assert "twice" in refusal(build({CONFIG_NAME: b"{}", CONFIG_NAME.upper(): b"[]"}), tmp_path / "more")


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


@every_build
def test_no_adapter_and_a_pickle(tmp_path: Path, build: Build) -> None:
    assert "no adapter" in refusal(build({"README.md": b"x", f"a/b/{CONFIG_NAME}": b"{}"}), tmp_path)
    (tmp_path / "more").mkdir()
    pickled = {CONFIG_NAME: b"{}", "adapter_model.bin": b"x"}
    assert "is a pickle" in refusal(build(pickled), tmp_path / "more")


@pytest.mark.parametrize("kind", [*b"123467", *b"SDMVZ"])
def test_entries_that_are_no_files(tmp_path: Path, kind: int) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo(CONFIG_NAME)
        info.type, info.linkname = bytes([kind]), "/etc/passwd"
        archive.addfile(info)
    assert "the archive holds a" in refusal(content.getvalue(), tmp_path)


def test_a_sparse_file_by_extended_header(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo(CONFIG_NAME)
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
        archive.addfile(info)
    assert "a sparse file" in refusal(content.getvalue(), tmp_path)


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666])
def test_zip_entries_that_are_no_files(tmp_path: Path, mode: int) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo(WEIGHTS_NAME)
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    assert "the archive holds a" in refusal(content.getvalue(), tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    assert "neither stored nor deflated" in refusal(zipped(SOUND, method), tmp_path)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    content = bytearray(zipped(SOUND))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(bytes(content), tmp_path)


@pytest.mark.parametrize(
    "magic", [b"", b"x", b"BZh9", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"not an archive" * 99]
)
def test_no_archive(tmp_path: Path, magic: bytes) -> None:
    assert "can't be read" in refusal(magic, tmp_path)


@every_build
def test_too_many_files_and_bytes(tmp_path: Path, build: Build) -> None:
    many = {**SOUND, **{str(number): b"" for number in range(20)}}
    assert "more than 20 files" in refusal(build(many), tmp_path)
    (tmp_path / "more").mkdir()
    small = SourcePolicy(max_bytes=5000, max_files=20)
    assert "5,000 bytes" in refusal(build(SOUND), tmp_path / "more", small)
    (tmp_path / "unkept").mkdir()
    unkept = {"notes": os.urandom(6000), CONFIG_NAME: b"{}"}
    assert "5,000 bytes" in refusal(build(unkept), tmp_path / "unkept", small)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tar.gz", "zip"])
def test_bombs(tmp_path: Path, name: str) -> None:
    build = BUILDS[name]
    content = build({CONFIG_NAME: b"{}", WEIGHTS_NAME: bytes(64 << 20)})
    assert len(content) < 200_000
    large = build({"noise": os.urandom(1 << 20), WEIGHTS_NAME: bytes(64 << 20)})
    (tmp_path / "absolute").mkdir()
    tracemalloc.start()
    assert "more than 100 times its size" in refusal(content, tmp_path)
    assert "33,554,432 bytes" in refusal(large, tmp_path / "absolute")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "memory stays bounded"


def test_a_bomb_behind_the_end_of_a_tar(tmp_path: Path) -> None:
    assert "too much follows" in refusal(gzip.compress(tar(SOUND) + bytes(32 << 20)), tmp_path)


def test_huge_headers(tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 2 << 30
        parent = tmp_path / str(number)
        parent.mkdir()
        assert "extended header has 2,147,483,648 bytes" in refusal(info.tobuf(), parent)
    directory = zipped({f"{number:0200}": b"" for number in range(6000)})
    assert "directory is too large" in refusal(directory, tmp_path)


def test_an_endless_chain_of_extended_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_LONGNAME
    assert "too many extended headers" in refusal(info.tobuf() * 5000, tmp_path)


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_odd_sizes(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo(CONFIG_NAME)
    info.size = size
    assert "can't be read" in refusal(info.tobuf(format=tarfile.GNU_FORMAT), tmp_path)


@every_build
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated(tmp_path_factory: pytest.TempPathFactory, build: Build, data: st.DataObject) -> None:
    content = build(SOUND)
    compressed = content[:2] in (b"PK", b"\x1f\x8b")
    end = len(content) if compressed else len(content.rstrip(b"\0"))  # a tar's padding may be missing
    cut = data.draw(st.integers(0, end - 1))
    refusal(content[:cut], tmp_path_factory.mktemp("cut"))


names = st.sampled_from(["..", ".", "a", CONFIG_NAME, WEIGHTS_NAME, "/", "\\", "C:", "~", "ä", " ", "x" * 99])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(paths, st.binary(max_size=600), max_size=4), st.sampled_from([tar, zipped]), st.data())
def test_anything_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], build: Build, data: st.DataObject
) -> None:
    """Hostile names, and archives with some of their bytes changed: refused, or flat and of known names."""
    content = bytearray(build(files))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    parent = tmp_path_factory.mktemp("any")
    try:
        kept = outcome(bytes(content), parent / "into")
    except ArtifactError:
        kept = None
    assert kept != {}
    assert [path.name for path in parent.iterdir()] == ["into"]
    assert {path.name for path in (parent / "into").rglob("*")} <= {CONFIG_NAME, WEIGHTS_NAME}
    assert all(path.is_file() and not path.is_symlink() for path in (parent / "into").iterdir())
