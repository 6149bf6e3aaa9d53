"""Writing tensors to a file: what the disk refuses is an ``OSError``, as for any other file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from errno import EIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from manylora.adapters.disk import follow_umask


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, with the mode of any other new file.

    Raises:
        OSError: the disk is full or refused. The library has no exception of its own for that: the
            number is in the text.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        follow_umask(path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise OSError(EIO, str(error), str(path)) from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
