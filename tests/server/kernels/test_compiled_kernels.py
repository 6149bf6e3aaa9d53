"""Every kernel that steps launch compiles for every kind of GPU, and fits its processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from tests.support.compiled_kernels import ALL, FEW, SHARED, SOME, Case

pytestmark = pytest.mark.slow

KERNELS = {
    "norm_rows", "write_heads", "attend_partition", "join_partitions", "join_heads", "attend_chunks",
    "gate_rows", "add_rows", "shrink_tiles", "expand_tiles", "multiply_codes", "multiply_rows",
}  # fmt: skip
REGISTERS = 255  # that a thread can have
FILE = 65536  # registers of a processor
SPILLED = 64  # bytes a thread, of numbers of 16 bits on tensor cores that take them
SPILLED_WIDE = 1024  # of float32, which tensor cores multiply in several passes or not at all


@cache
def compiled(name: str) -> list[dict[str, Any]]:
    """What a set of cases takes. Triton's interpreter is for good or not at all: another process compiles."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.support.compiled_kernels", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [kernel for line in done.stdout.splitlines() for kernel in json.loads(line)]


def check(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["shared"] <= SHARED[kernel["arch"]], kernel
        amd = kernel["arch"].startswith("gfx")
        threads, file = kernel["warps"] * (64 if amd else 32), FILE * (2 if amd else 1)
        assert kernel["registers"] <= REGISTERS * (2 if amd else 1), kernel
        assert kernel["registers"] * threads <= file, kernel
        narrow = kernel["dtype"] != "float32" and (kernel["arch"], kernel["dtype"]) != ("sm75", "bfloat16")
        assert kernel["spilled"] <= (SPILLED if narrow else SPILLED_WIDE), kernel


def test_a_new_architecture_and_the_oldest() -> None:
    found = compiled("few")
    check_all(found, FEW)


@pytest.mark.sweep
def test_each_architecture() -> None:
    assert {case.arch for case in SOME} == set(SHARED)
    check_all(compiled("some"), SOME)


def check_all(found: list[dict[str, Any]], cases: Sequence[Case]) -> None:
    """Every kernel is among what the cases launch, and fits."""
    for case in cases:
        own = {k["kernel"] for k in found if k["arch"] == case.arch}
        assert own == KERNELS
    check(found)


@pytest.mark.sweep
@pytest.mark.parametrize("arch", SHARED)
def test_every_model_and_number_format(arch: str) -> None:
    found = compiled(arch)
    # What one model has had compiled is there for the next, if it launches the same.
    check_all(found, [case for case in ALL if case.arch == arch])
