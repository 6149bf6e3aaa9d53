"""Where artifacts may come from: directories inside the roots that the operator configured."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import SourceForbidden, SourceMissing
from adapters.faults import shown
from adapters.files import KEPT_NAMES

MAX_PATH = 4096  # characters, Linux's own limit


def resolve_directory(path: str, roots: Sequence[Path]) -> Path:
    """The real directory that ``path`` names, which lies inside one of ``roots``.

    A relative path is looked up under each root in turn, then from the working directory. Symbolic
    links are followed first and the result is compared, for the directory and for the adapter's files
    in it, so a link can't lead out. Without roots nothing is allowed. "~" and variables mean nothing
    here. Whether a forbidden path exists is not told.

    Raises:
        SourceForbidden: it lies outside the roots, or one of its files does.
        SourceMissing: there is no such directory, or it can't be read.
    """
    if not roots:
        raise SourceForbidden("loading adapters from a path is off: start the server with --adapter-root DIR")
    if not path or "\0" in path or len(path) > MAX_PATH:
        raise SourceMissing(f"{shown(path)} is not a path")
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    candidates = [_real(start / path) for start in (*real_roots, Path.cwd())]
    inside = [found for found in candidates if _within(found, real_roots)]
    if not inside:
        raise SourceForbidden(f"{shown(path)} is outside the directories that adapters may be loaded from")
    directory = next((found for found in inside if os.path.isdir(found)), inside[0])  # noqa: PTH112 (never raises)
    _check_readable(directory, path)
    for name in KEPT_NAMES:
        if not _within(_real(directory / name), real_roots):
            raise SourceForbidden(f"{name} of {shown(path)} is a link that leads out of the adapter roots")
    return directory


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _within(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _check_readable(directory: Path, path: str) -> None:
    try:
        mode = directory.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise SourceMissing(f"no adapter at {shown(path)}: {reason.lower()}") from None
    if not stat.S_ISDIR(mode):
        raise SourceMissing(f"no adapter at {shown(path)}: it is not a directory")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise SourceMissing(f"no adapter at {shown(path)}: permission denied")
