"""What Triton calls PyTorch's number formats."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def dot_type(dtype: torch.dtype) -> Any:
    """The type in which tensor cores multiply numbers of ``dtype``; sums are float32 in any case.

    Triton's interpreter multiplies bfloat16 as if its bits were integers. There it is float32, in which the
    products of two bfloat16 are exact, as they are in the tensor cores.
    """
    return tl.float32 if triton.knobs.runtime.interpret else _TYPES[dtype]
