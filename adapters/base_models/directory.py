"""Where base models and adapter revisions are kept unless told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

GGUF_LINK = "model.gguf"  # in the directory that is made for a GGUF file: a link to it


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/manylora``, or ``~/.local/share/manylora``."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "manylora"
