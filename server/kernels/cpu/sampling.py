"""Drawing tokens as one native call with the GIL released."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from manylora.server.kernels.cpu import abi
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import Int32


class NativeDraw:
    """Draws tokens in C++ from logits on the CPU, which are read in place if they are float32.
    Not for two threads at once. What was drawn from last may be again, with other values in the same arrays.

    Weights are within 2 ulp and sums are rounded otherwise, so that a share that lies that close to the
    border of two tokens may get the other one.
    """

    def __init__(self, native: ctypes.CDLL, threads: int) -> None:
        self._native = native
        self._sampler = native.manylora_open_sampler(threads)
        if not self._sampler:
            raise MemoryError("no room for a sampler")
        self._prepared: _Prepared | None = None
        self._finalizer = weakref.finalize(self, native.manylora_close_sampler, self._sampler)

    def __call__(self, draws: Draws) -> list[int]:
        if len(draws.logits) == 0:
            return []
        prepared = self._prepared
        if prepared is None or prepared.draws() is not draws:
            prepared = _Prepared.of(draws)
            self._prepared = prepared if draws.logits.dtype == torch.float32 else None
        fault = self._native.manylora_draw(self._sampler, prepared.arguments)
        if fault != 0:
            raise MemoryError(abi.FAULTS[fault])
        return prepared.tokens.tolist()  # type: ignore[no-any-return]


class _Prepared(NamedTuple):
    """The C struct of a draw whose arrays may be changed and drawn from again, and what it points to."""

    draws: weakref.ref[Draws]  # that it was made of; what they hold must not outlive them here
    arguments: abi.Draw
    addresses: np.ndarray
    masks: np.ndarray | None
    logits: torch.Tensor | None  # a copy of the draws' logits in float32, if they are none
    tokens: np.ndarray  # filled by each call

    @classmethod
    def of(cls, draws: Draws) -> _Prepared:
        """The struct of ``draws``."""
        rows, width = draws.logits.shape
        logits = draws.logits.float()
        addresses = _addresses(logits, draws.replaced)
        tokens = np.empty(rows, np.int64)
        masks = _masks(rows, width, draws.allowed)
        arguments = abi.Draw(
            rows=rows,
            width=width,
            logits=addresses.ctypes.data,
            temperature=draws.temperature.ctypes.data,
            top_k=draws.top_k.ctypes.data,
            top_p=draws.top_p.ctypes.data,
            min_p=draws.min_p.ctypes.data,
            uniform=draws.uniform.ctypes.data,
            allowed=None if masks is None else masks.ctypes.data,
            tokens=tokens.ctypes.data,
        )
        copied = None if logits is draws.logits else logits
        return cls(weakref.ref(draws), arguments, addresses, masks, copied, tokens)


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


def _masks(rows: int, width: int, allowed: Mapping[int, Int32]) -> np.ndarray | None:
    """The address in memory of each row's bits, 0 where all its tokens may be drawn; None if of all rows."""
    if not allowed:
        return None
    starts = np.zeros(rows, np.uintp)
    for row, words in allowed.items():
        assert len(words) * 32 >= width
        assert words.flags.c_contiguous
        starts[row] = words.ctypes.data
    return starts
