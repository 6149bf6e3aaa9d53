"""What Triton calls PyTorch's number formats, and the sizes it computes in."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from manylora.server.kernels.reference.attention import Scoring

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
_LEAST_TILE = 16  # that tensor cores multiply
_SHARED = 64 * 1024  # bytes that the smallest of the supported devices has
_NO_WINDOW = 2**30  # more than any context


def dot_type(dtype: torch.dtype) -> Any:
    """The type in which tensor cores multiply numbers of ``dtype``; sums are float32 in any case.

    Triton's interpreter multiplies bfloat16 as if its bits were integers. There it is float32, in which the
    products of two bfloat16 are exact, as they are in the tensor cores.
    """
    return tl.float32 if triton.knobs.runtime.interpret else _TYPES[dtype]


def tile_of(size: int) -> int:
    """The least power of two that holds ``size`` elements and that tensor cores multiply."""
    return max(_LEAST_TILE, 1 << (size - 1).bit_length())


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of memory that the threads of a program can share; if that is not known, what every GPU has."""
    if device.type != "cuda":
        return _SHARED
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _SHARED))


def window_of(scoring: Scoring) -> int:
    """How many tokens a row sees, itself included, as kernels are told."""
    return _NO_WINDOW if scoring.window is None else scoring.window


@cache
def multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton multiplies ``dtype`` on tensor cores of that device: 16 bits, not before Ampere."""
    if dtype == torch.float32:
        return False
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
