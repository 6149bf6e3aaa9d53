"""A GGUF file as a base model: a directory with its small files, and a link to it for the weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from manylora.adapters.base_models.directory import GGUF_LINK
from manylora.adapters.base_models.gguf.convert import write_small_files
from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.errors import BaseModelError
from manylora.adapters.file_locks import locked


def gguf_directory(file: Path, data_dir: Path) -> Path:
    """Return a model directory for a GGUF file, made under ``data_dir`` unless it is there already.

    It belongs to this path and this header: a file with another vocabulary or other tensors gets another.

    Raises:
        BaseModelError: the file is damaged or holds something that is not read, or the disk refuses.
    """
    path = file.resolve()
    model = GgufModel(path)
    key = hashlib.sha256(f"{model.digest} {path}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    parent = data_dir / "models"
    directory = parent / f"{path.stem}-{key}"
    if directory.is_dir():  # complete, because it appears by one rename
        return directory
    staging = parent / f".{directory.name}.partial"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / f".{directory.name}.lock"):  # of two processes one writes
            if not directory.is_dir():
                _write(model, path, staging)
                staging.rename(directory)
    except OSError as error:
        raise BaseModelError(f"{file}: {error.filename or parent}: {error.strerror or error}") from error
    return directory


def _write(model: GgufModel, path: Path, staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir()
    try:
        write_small_files(model, staging)
    except BaseModelError:
        shutil.rmtree(staging)
        raise
    (staging / GGUF_LINK).symlink_to(path)
