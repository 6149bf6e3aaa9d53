"""Where the Triton kernels are tested."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """A GPU, for which the kernels are compiled; where there is none, the CPU and Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
