"""Every level's sources are valid C++, whatever the processor at hand can run."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manylora.server.kernels.cpu.build import (
    SOURCES,
    Variant,
    compilable_variants,
    compile_command,
    usable_variants,
)

# What takes most of the time to read; a compiler that knows no such file reads it every time.
HEADERS = ("cmath", "cstdint", "cstring", "vector", "new", "memory", "omp.h")


@pytest.mark.slow
@pytest.mark.parametrize(
    "level",
    [variant for variant in compilable_variants() if variant not in usable_variants()],
    ids=lambda variant: variant.name,
)
def test_a_level_that_does_not_run_here_compiles(level: Variant, tmp_path: Path) -> None:
    """Others are compiled by the tests that run them."""
    vectors = ["immintrin.h"] if level.cpu_flags else []
    header = tmp_path / "read_once.h"
    header.write_text("".join(f"#include <{name}>\n" for name in (*vectors, *HEADERS)))
    command = compile_command(level)
    subprocess.run([*command, "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)

    def errors(source: Path) -> str:
        check = [*command, "-include", str(header), "-fsyntax-only", str(source)]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert [found for found in pool.map(errors, sorted(SOURCES.glob("*.cpp"))) if found] == []
