"""What a rank is told before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class RankSetup:
    """One rank's part in a server."""

    directory: Path  # of the model
    rank: int
    count: int
    device: torch.device
    dtype: torch.dtype
    max_model_len: int | None
    kernels: str
    coded_cache: bool
    backend: str  # see Group
    meeting: Path
    threads: int  # that compute on a CPU
    log_level: str


@dataclass(frozen=True)
class RankReady:
    """What a rank answers once it has its part of the decoder."""

    free: int  # bytes beside it
    kernels: str
