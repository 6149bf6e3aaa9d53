"""Which folder of many holds the adapter: the one that was asked for, or the topmost.

Trainers leave checkpoints in folders below the adapter that they end with, each an adapter itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from manylora.adapters.errors import ArtifactError, SourceMissing
from manylora.adapters.format.faults import shown, some
from manylora.adapters.format.files import CONFIG_NAME, PICKLES, WEIGHTS_NAME, pickle_fault
from manylora.adapters.format.foreign.file_names import foreign_weights

MAX_PATH = 1024  # characters of a name in an archive or a form
_SHOWN_FOLDERS = 12  # of those to choose from, in one fault
_DRIVE = re.compile(r"[A-Za-z]:")
_JUNK_FOLDERS = frozenset({"__MACOSX", ".git", "__pycache__"})
_JUNK_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def clean_path(path: str) -> str | None:
    """A name in an archive, whichever system wrote it, as "folder/file"; None where it leads out."""
    plain = path.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in {"", "."}]
    unsafe = (
        len(path) > MAX_PATH
        or plain.startswith("/")
        or ".." in parts
        or _DRIVE.match(plain) is not None
        or not path.isprintable()
    )
    return None if unsafe else "/".join(parts)


def is_junk(path: str) -> bool:
    """Whether a file is one that a file manager leaves behind ("__MACOSX/._x", ".DS_Store")."""
    *folders, name = path.split("/")
    return not _JUNK_FOLDERS.isdisjoint(folders) or name in _JUNK_FILES or name.startswith("._")


def check_subfolder(subfolder: str) -> str:
    """A subfolder as "a/b", "" for none.

    Raises:
        SourceMissing: it is no path below another.
    """
    path = clean_path(subfolder)
    if path is None:
        raise SourceMissing(f"{shown(subfolder)} is not the name of a subfolder")
    return path


def choose(found: Mapping[str, Collection[str]], subfolder: str = "") -> str:
    """The folder to take, out of ``found``: for each folder the names of its files; "" is the top.

    Raises:
        ArtifactError: there is none, or it has to be told which of several; names them.
    """
    some_files = [path for path, names in found.items() if _has_part(names)]
    if subfolder:
        return _asked_for(subfolder, some_files)
    candidates = [path for path in some_files if "/" not in path or _is_complete(found[path])]
    topmost = [path for path in candidates if not any(_below(path, other) for other in candidates)]
    if len(topmost) == 1:
        return topmost[0]
    if topmost:
        raise ArtifactError([f"the archive holds more than one adapter: {_listed(topmost)}"])
    pickles = [name for path, names in found.items() for name in names if "/" not in path]
    pickles = [name for name in pickles if name.endswith(PICKLES)]
    if pickles:
        raise ArtifactError([pickle_fault(min(pickles))])
    raise ArtifactError(["the archive holds no adapter at its top or in its one directory"])


def check_weights(names: Collection[str]) -> None:
    """Refuse a folder whose weights are a pickle, before the validation says it less well.

    Raises:
        ArtifactError: it has one, and no safetensors.
    """
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and WEIGHTS_NAME not in names and not foreign_weights(names):
        raise ArtifactError([pickle_fault(min(pickles))])


def choice(folders: Collection[str]) -> str:
    """How to choose one of several folders, as the end of a sentence; empty where there is none."""
    return f"; there are adapters {_listed(folders)}" if folders else ""


def _asked_for(subfolder: str, folders: Collection[str]) -> str:
    exact = [path for path in folders if path == subfolder]
    ending = exact or [path for path in folders if path.endswith(f"/{subfolder}")]  # in a wrapping folder
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ArtifactError([f"{shown(subfolder)} is the name of several folders: {_listed(ending)}"])
    raise ArtifactError([f"there is no adapter in the subfolder {shown(subfolder)}{choice(folders)}"])


def _listed(folders: Collection[str]) -> str:
    names = (f"{path}/" for path in sorted(folders, key=_natural))
    return f"in {some(names, len(folders), _SHOWN_FOLDERS)}: pass subfolder= to say which"


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts checkpoint-1000 behind checkpoint-200."""
    parts: Iterable[str] = re.findall(r"[0-9]{1,18}|[^0-9]+|[0-9]+", path)
    return [(int(part), "") if part.isdecimal() and len(part) <= 18 else (-1, part) for part in parts]


def _below(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}/"))


def _has_part(names: Collection[str]) -> bool:
    return CONFIG_NAME in names or WEIGHTS_NAME in names or bool(foreign_weights(names))


def _is_complete(names: Collection[str]) -> bool:
    if WEIGHTS_NAME in names:
        return CONFIG_NAME in names
    return bool(foreign_weights(names))
