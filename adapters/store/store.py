"""Revisions on disk: immutable copies of artifacts, each in a directory named by its digest.

A revision comes into being by one rename of a directory that was written and synced elsewhere, so it
is either there as a whole or not at all, whenever a process is killed. Several processes may share a
store. Under its root lie, beside the revisions:

    .lock            held by all who publish together, and by one alone who deletes
    .live-<owner>    locked by its process as long as that lives
    .tmp-<owner>-*   what that process is fetching, writing or deleting
    .identity        a random name by which a registry knows its store
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from manylora.adapters.disk import disk_fault, follow_umask, sync_path
from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.file_locks import locked, try_lock
from manylora.adapters.format.files import CONFIG_NAME, KEPT_NAMES, WEIGHTS_NAME
from manylora.adapters.store.copying import same_bytes

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OWNER = re.compile(r"[0-9a-f]{16}")
_LOCK = ".lock"
_LIVE = ".live-"
_TEMPORARY = ".tmp-"
_IDENTITY = ".identity"
_NEEDED = (CONFIG_NAME, WEIGHTS_NAME)


class RevisionStore:
    """The revisions in the directory ``root``. Thread-safe, and shared by processes."""

    def __init__(self, root: Path) -> None:
        """Open the store, creating ``root``, and remove what killed processes left half done.

        Raises:
            StoreError: the directory can't be used.
        """
        self.root = root
        self.owner = secrets.token_hex(8)  # this process, among those that share the store
        with self._faults("can't be opened"):
            root.mkdir(parents=True, exist_ok=True)
            with self._alone():
                live = try_lock(root / f"{_LIVE}{self.owner}", create=True)
                assert live is not None, "the owner is a fresh random name"
                self._live: BinaryIO = live
                self.identity = self._identify()
                self._remove_leftovers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say that this process is done with the store. Closing twice is fine."""
        (self.root / f"{_LIVE}{self.owner}").unlink(missing_ok=True)
        self._live.close()

    def alive(self, owner: str) -> bool:
        """Whether the process that opened the store as ``owner`` still runs."""
        if not _OWNER.fullmatch(owner):
            return False
        with self._faults("can't be read"):
            return not _dead(self.root / f"{_LIVE}{owner}")

    @property
    def num_others(self) -> int:
        """Processes that have the store open now, besides this one."""
        with self._faults("can't be read"):
            others = [path for path in self.root.glob(f"{_LIVE}*") if path.name != f"{_LIVE}{self.owner}"]
            return sum(not _dead(path) for path in others)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """An empty directory that is gone afterwards, whatever happens, unless :meth:`move_in` took it."""
        with self._faults("can't be written to"):
            path = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{self.owner}-", dir=self.root))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def deletion_blocked(self) -> Iterator[None]:
        """Keep every process from deleting revisions while this is held.

        Whoever moves a revision in and then registers it holds this from the one to the other; so
        :meth:`discard` never deletes a revision that is about to be referenced.
        """
        with self._faults("can't be locked"), locked(self.root / _LOCK, shared=True):
            yield

    def prepare(self, temporary: Path) -> None:
        """Drop from a :meth:`temporary` directory what a revision doesn't keep, and sync the rest to disk.

        Raises:
            StoreError: the disk refused.
        """
        with self._faults("can't be written to"):
            _drop_others(temporary, "")
            follow_umask(temporary)
            for path in (*temporary.rglob("*"), temporary):
                sync_path(path)

    def move_in(self, temporary: Path, digest: str) -> Path:
        """Make a prepared temporary directory the revision ``digest``, unless that is there already.

        What is there but has lost files, or has other bytes, is replaced.

        Raises:
            StoreError: the disk refused.
        """
        target = self.root / digest
        assert _DIGEST.fullmatch(digest), "a digest is 64 hex digits"
        with self._faults("can't be written to"), self.deletion_blocked():
            if target.is_dir() and not _has_files_of(target, temporary):
                with self.temporary() as aside:
                    _move_out(target, aside / digest)
            try:
                temporary.rename(target)
            except OSError as error:  # somebody published the same content before: that copy stays
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            sync_path(self.root)  # also where another process renamed it and was killed before it synced
        return target

    def path(self, digest: str) -> Path:
        """The directory of a revision, by its full digest.

        Raises:
            AdapterNotFound: there is no such revision.
        """
        if not self.has(digest):
            raise AdapterNotFound(f"no revision {digest[:64]!r} in the store")
        return self.root / digest

    def has(self, digest: str) -> bool:
        """Whether there is such a revision, with its config and its weights."""
        path = self.root / digest
        return bool(_DIGEST.fullmatch(digest)) and all((path / name).is_file() for name in _NEEDED)

    def digests(self) -> list[str]:
        """The full digests of all revisions, sorted.

        Raises:
            StoreError: the disk refused.
        """
        with self._faults("can't be read"):
            return sorted(entry.name for entry in self.root.iterdir() if _DIGEST.fullmatch(entry.name))

    def discard(
        self, digests: Collection[str] | None, referenced: Callable[[], Collection[str]]
    ) -> dict[str, int]:
        """Delete those of ``digests`` (None: of all revisions) that are not ``referenced``.

        ``referenced`` is called while nobody can move a revision in and register it, so what it returns can
        be relied on. Unknown digests are skipped. Returns the bytes of disk that each deleted one took.

        Raises:
            StoreError: the disk refused.
        """
        taken: dict[str, Path] = {}
        with self._faults("can't be written to"):
            with self._alone():
                keep = referenced()
                for digest in self.digests() if digests is None else digests:
                    if digest in keep or not _DIGEST.fullmatch(digest):
                        continue
                    # In one step: a kill half way leaves a temporary directory, never half a revision. And
                    # without a new directory, for which a full disk may have no room.
                    aside = self.root / f"{_TEMPORARY}{self.owner}-{digest}-{secrets.token_hex(4)}"
                    if _move_out(self.root / digest, aside):
                        taken[digest] = aside
                sync_path(self.root)
            freed = {digest: _bytes_in(aside) for digest, aside in taken.items()}
            for aside in taken.values():
                shutil.rmtree(aside, ignore_errors=True)
        return freed

    def remove_leftovers(self) -> None:
        """Remove the temporary directories of processes that have died.

        Raises:
            StoreError: the disk refused.
        """
        with self._faults("can't be written to"), self._alone():
            self._remove_leftovers()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with locked(self.root / _LOCK):
            yield

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_fault(f"the revision store {self.root} {what}", error) from None

    def _identify(self) -> str:
        path = self.root / _IDENTITY
        try:
            return path.read_text("ascii").strip()[:64]
        except FileNotFoundError:
            fresh = secrets.token_hex(16)
        draft = path.with_name(f"{_TEMPORARY}{self.owner}{_IDENTITY}")
        draft.write_text(f"{fresh}\n")
        sync_path(draft)
        draft.rename(path)
        sync_path(self.root)
        return fresh

    def _remove_leftovers(self) -> None:
        """Remove what belongs to no living process. Under the lock, so that none is just starting."""
        living = {self.owner}
        for path in self.root.glob(f"{_LIVE}*"):
            owner = path.name.removeprefix(_LIVE)
            if owner == self.owner or not _dead(path):
                living.add(owner)
            else:
                path.unlink(missing_ok=True)
        for path in self.root.glob(f"{_TEMPORARY}*"):
            if path.name.removeprefix(_TEMPORARY)[:16] in living:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _dead(path: Path) -> bool:
    """Whether the process whose lock file is ``path`` has ended."""
    try:
        lock = try_lock(path)
    except FileNotFoundError:
        return True
    if lock is None:
        return False
    lock.close()
    return True


def _drop_others(directory: Path, folder: str) -> None:
    """Remove what is no file that a revision keeps; ``folder`` is the path of ``directory``, "" or "a/"."""
    for entry in list(os.scandir(directory)):
        name = f"{folder}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if any(kept.startswith(f"{name}/") for kept in KEPT_NAMES):
                _drop_others(Path(entry.path), f"{name}/")
            else:
                shutil.rmtree(entry.path)
        elif name not in KEPT_NAMES or not entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink()


def _files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def _has_files_of(revision: Path, copy: Path) -> bool:
    """Whether ``revision`` still has every file of ``copy``; only the config may be formatted otherwise."""
    files = [(revision / file.relative_to(copy), file) for file in _files_in(copy)]
    return all(old.is_file() and (new.name == CONFIG_NAME or same_bytes(old, new)) for old, new in files)


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in _files_in(directory))


def _move_out(path: Path, target: Path) -> bool:
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    return True
