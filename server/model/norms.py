"""The norms of the rows of W + B A, which DoRA divides by: computed from the base, kept beside a revision.

Computing them is a pass over the base's weights (hundreds of milliseconds for 135 million of them), so that
a revision that comes back from disk again and again finds them there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adapters.delta import ModuleDelta
from server.kernels.inputs import BaseWeights

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # elements of W that are widened to fp32 at a time
_DIGEST = hashlib.sha256().digest_size


def row_norms(weight: torch.Tensor, delta: ModuleDelta) -> torch.Tensor:
    """‖W + B A‖ of each row [out] in fp32 on the CPU, for ``weight`` [out, in], a few rows at a time.

    As PEFT computes them (``tuners/lora/dora.py``): W in the dtype it is served in, widened.
    """
    a, b = delta.a.to(weight.device, torch.float32), delta.scaled_b().to(weight.device)
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [
        torch.addmm(weight[i : i + rows].float(), b[i : i + rows], a).norm(dim=1)
        for i in range(0, weight.shape[0], rows)
    ]
    return torch.cat(parts).cpu()


@dataclass(frozen=True)
class NormFile:
    """Where the norms of one revision on one base are kept: SHA-256 of ``key`` and numbers, numbers."""

    path: Path
    key: str  # names revision, base and dtype

    @classmethod
    def beside(cls, directory: Path, digest: str, fingerprint: str, dtype: torch.dtype) -> NormFile:
        """In the directory of a revision; other bases and dtypes have files of their own."""
        name = str(dtype).removeprefix("torch.")
        return cls(directory / f"norms-{fingerprint[:16]}-{name}", f"{digest} {fingerprint} {name}")

    def read(self, count: int) -> torch.Tensor | None:
        """The ``count`` norms; None if they are not there, or not whole."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        if len(content) != _DIGEST + 4 * count or content[:_DIGEST] != self._digest(content[_DIGEST:]):
            return None
        return torch.from_numpy(np.frombuffer(content, np.float32, offset=_DIGEST).copy())

    def write(self, norms: torch.Tensor) -> None:
        """Keep ``norms``. A disk that refuses is no fault: they are computed again then."""
        numbers = norms.numpy().tobytes()
        temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        try:
            temporary.write_bytes(self._digest(numbers) + numbers)
            temporary.replace(self.path)
        except OSError as error:
            logger.warning("DoRA's norms are not kept at %s: %s", self.path, error.strerror)

    def _digest(self, numbers: bytes) -> bytes:
        return hashlib.sha256(self.key.encode() + numbers).digest()


class RowNorms:
    """The norms of an adapter's modules, asked for one after the other in a fixed order."""

    def __init__(self, base: BaseWeights | None, file: NormFile | None, count: int) -> None:
        """``count`` is how many norms all modules have together."""
        self._base = base
        self._file = file
        self._kept = None if file is None or not count else file.read(count)
        self._position = 0
        self._computed: list[torch.Tensor] = []

    def of(self, index: int, delta: ModuleDelta) -> torch.Tensor:
        """Norms [out] of module ``index``."""
        if self._kept is not None:
            start, self._position = self._position, self._position + delta.b.shape[0]
            return self._kept[start : self._position]
        assert self._base is not None, "DoRA needs the base's weights"
        self._computed.append(row_norms(self._base.weight(index), delta))
        return self._computed[-1]

    def keep(self) -> None:
        """Write what was computed."""
        if self._computed and self._file is not None:
            self._file.write(torch.cat(self._computed))
