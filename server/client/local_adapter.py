"""The files of an adapter on this machine that are sent to a server."""

from __future__ import annotations

from pathlib import Path

from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME, folder_and_name, kept_in
from manylora.adapters.format.foreign.file_names import (
    files_of_adapter,
    foreign_weights,
    may_be_weights,
)
from manylora.server.client.errors import Unusable

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


def local_files(path: Path) -> tuple[Path, ...]:
    """The files to send of the adapter at ``path``, a PEFT directory or an archive of one.

    Raises:
        Unusable: there is no adapter there.
    """
    if path.is_file():
        if not path.name.endswith(_ARCHIVES) and not may_be_weights(path.name):
            kinds = ", ".join((*_ARCHIVES, ".gguf", ".safetensors"))
            raise Unusable(f"{path} is neither a directory nor a {kinds} file")
        return (path,)
    if not path.is_dir():
        raise Unusable(f"{path}: no such directory (for one on the server's machine: --server-path)")
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    if foreign_weights(names):
        return tuple(path / name for name in files_of_adapter(names))
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (path / name).is_file()]
    if missing:
        raise Unusable(f"{path} is not a PEFT adapter in safetensors: it has no {' and no '.join(missing)}")
    return tuple(path / name for name in kept_in(path))


def name_sent(path: Path) -> str:
    """The name that a file is sent under: the one that a revision keeps it by."""
    return folder_and_name(path.as_posix())[1]
