"""Drawing tokens as one native call with the GIL released."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping

import numpy as np
import torch

from manylora.server.kernels.cpu import abi
from manylora.server.kernels.draws import Draws


class NativeDraw:
    """Draws tokens in C++ from logits on the CPU, which are read in place if they are float32.
    Not for two threads at once.

    Weights are within 2 ulp and sums are rounded otherwise, so that a share that lies that close to the
    border of two tokens may get the other one.
    """

    def __init__(self, native: ctypes.CDLL, threads: int) -> None:
        self._native = native
        self._sampler = native.manylora_open_sampler(threads)
        if not self._sampler:
            raise MemoryError("no room for a sampler")
        self._finalizer = weakref.finalize(self, native.manylora_close_sampler, self._sampler)

    def __call__(self, draws: Draws) -> list[int]:
        rows, width = draws.logits.shape
        if rows == 0:
            return []
        logits = draws.logits.float()
        addresses = _addresses(logits, draws.replaced)
        tokens = np.empty(rows, np.int64)
        arguments = abi.Draw(
            rows=rows,
            width=width,
            logits=addresses.ctypes.data,
            temperature=draws.temperature.ctypes.data,
            top_k=draws.top_k.ctypes.data,
            top_p=draws.top_p.ctypes.data,
            min_p=draws.min_p.ctypes.data,
            uniform=draws.uniform.ctypes.data,
            tokens=tokens.ctypes.data,
        )
        fault = self._native.manylora_draw(self._sampler, arguments)
        if fault != 0:
            raise MemoryError(abi.FAULTS[fault])
        return tokens.tolist()


def _addresses(logits: torch.Tensor, replaced: Mapping[int, torch.Tensor]) -> np.ndarray:
    """The address in memory at which each row of logits begins."""
    assert logits.stride(1) == 1
    starts = np.arange(len(logits), dtype=np.uintp) * (logits.stride(0) * logits.element_size())
    starts += logits.data_ptr()
    for row, values in replaced.items():
        assert values.dtype == torch.float32
        assert values.is_contiguous()
        starts[row] = values.data_ptr()
    return starts
