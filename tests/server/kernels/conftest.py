"""Where kernels are tested: the levels of the native ones, and the device of Triton's."""

from __future__ import annotations

import pytest
import torch

from manylora.server.kernels.cpu.build import Variant
from tests.support.kernel_cases import library_of, variants_under_test


@pytest.fixture(scope="module", params=variants_under_test(), ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every level that this machine can run, and that of tiles in their emulation."""
    chosen: Variant = request.param
    library_of(chosen)  # fails here, not in the first test, if it can't be compiled
    return chosen


@pytest.fixture
def device() -> torch.device:
    """A GPU, for which the kernels are compiled; where there is none, the CPU and Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
