"""Native steps and draws under the sanitizers for addresses, undefined behaviour and threads.

Each runs in a process of its own, into which the sanitizer's runtime is loaded first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from manylora.server.cache_directory import cache_directory
from manylora.server.kernels.cpu.build import (
    AMX_EMULATED,
    VARIANTS,
    KernelBuildError,
    Variant,
    build,
    usable_variants,
)

pytestmark = pytest.mark.slow

MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1")
THREADS = ("-fsanitize=thread", "-O1", "-g1")
OPENMP = Path(__file__).with_name("openmp_by_threads.cpp")

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from manylora.server.kernels.cpu import NativeStep, abi
from manylora.server.kernels.cpu.sampling import NativeDraw
from manylora.server.kernels.cpu.library import Library
from manylora.server.kernels.cpu.build import VARIANTS
from manylora.server.kernels.cpu.tiles import tiles_allowed
from manylora.server.kernels.inputs import CacheRun
from tests.support.draws import PARAMS, draws_of
from manylora.server.kernels.codes import Kind
from tests.support.coded import coded
from tests.support.kernel_cases import (
    CHANGES, MIXED_INPUTS, PAIRS, VECTORS, Batcher, Pages, Shape, random_decoder,
)

if "-amx-" in sys.argv[1]:
    assert "-emulated-" in sys.argv[1] or tiles_allowed()
library = Library(VARIANTS[-1], abi.load(Path(sys.argv[1])), "under test")
threads = int(sys.argv[2])
bits = {
    "plain": lambda weights: weights,
    "nibbles": lambda weights: coded(weights, Kind.NIBBLES, 32),
    "bytes": lambda weights: coded(weights, Kind.BYTES, 1 << 20),
}
for shape, kept in (
    (Shape(layers=1, bias=True, qk_norm=True, windows=(40,)), "plain"),
    (Shape(layers=1, heads=9, kv_heads=3, head_dim=80, hidden=48, intermediate=80, vocab=33), "plain"),
    (Shape(layers=1, heads=9, kv_heads=3, head_dim=16, hidden=48, intermediate=80, vocab=33), "nibbles"),
    (Shape(layers=1, bias=True), "bytes"),
    (Shape(layers=1, stacked=True), "plain"),
    (Shape(layers=1, experts=5, intermediate=48), "plain"),
):
    weights = bits[kept](random_decoder(shape))
    pages = Pages(weights, elements=1 << 18)
    one, two = pages.random(5, seed=1), pages.random([17, 1, 0, 5, 16, 3, 2], seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    whole = pages.random([0, 3, 0, 2, 0, 0, 0], seed=5, vectors=CHANGES)
    pairs = pages.random([0, 3, 0, 2, 0, 0, 0], seed=6, vectors=PAIRS)
    blocks = pages.random([0, 3, 0, 2, 0, 0, 0], seed=8, vectors=MIXED_INPUTS)
    scales_only = pages.random(0, seed=4, vectors=["gci"] * 7)
    routed = pages.random(0, seed=9, experts=4)
    native = NativeStep(weights, pages.pool[: pages.used], 64, 4, threads, library=library)
    batch = Batcher(64, shape.vocab)
    mixes = (
        (), ((one, 1.0),), ((two, 1.0),), ((one, -0.5), (two, 1.5)),
        ((scaled, 1.0),), ((scales_only, 1.0),), ((one, 1.0), (scales_only, 0.5), (scaled, -1.0)),
        ((whole, 1.0),), ((one, 1.0), (whole, 0.5), (scaled, -1.0)),
        ((pairs, 1.0),), ((one, 1.0), (whole, 0.5), (pairs, -1.0)),
        ((blocks, 1.0),), ((one, 1.0), (blocks, 0.5), (scaled, -1.0)),
        ((routed, 1.0),), ((routed, 0.5), (one, 1.0), (routed, 0.3)),
    )
    lengths = (200, 17, 40, 5, 30, 5, 6, 20, 9, 15, 7, 18, 3, 8, 4)
    sequences = [batch.sequence(n, m) for n, m in zip(lengths, mixes)]
    for take in (lambda s: len(s.tokens) - 2, lambda s: 1, lambda s: 1):
        assert native.step(batch.step([(s, take(s)) for s in sequences], all_logits=True)).isfinite().all()
    for s in sequences:
        s.done = 0
    assert native.step(batch.step([(s, len(s.tokens)) for s in sequences])).isfinite().all()
    for mix in ((), ((one, 1.0),)):  # a row alone: its context is split over the threads
        alone = batch.sequence(150, mix)
        assert native.step(batch.step([(alone, 149)])).isfinite().all()
        assert native.step(batch.step([(alone, 1)])).isfinite().all()
    behind = batch.sequence(12)  # three virtual tokens, whose keys and values end where the pool does
    behind.done, size = 3, shape.layers * 2 * shape.kv_heads * shape.head_dim
    copied = CacheRun(behind.blocks[0] * 16 + np.arange(3), pages.used - 3 * size)
    assert native.step(replace(batch.step([(behind, 9)]), cached=(copied,))).isfinite().all()
    del native
for width in (5, 300, 5000):
    table = torch.randn(len(PARAMS), width)
    shares = np.random.default_rng(0).random(len(PARAMS))
    few = table.masked_fill(table > 0, -torch.inf)
    for logits in (table, table.round(), few, torch.full_like(table, torch.nan)):
        drawn = NativeDraw(library.native, threads)(draws_of(logits, list(PARAMS), shares))
        assert all(0 <= token < width for token in drawn)
print("clean")
"""

BEST = usable_variants()[0]
# Of intrinsics the sanitizers see little; here every access of memory is one that the compiler made.
PLAIN = next(variant for variant in usable_variants() if "avx512_bf16" not in variant.cpu_flags)


def levels(often: list[Variant], others: list[Variant]) -> pytest.MarkDecorator:
    """Every one takes most of a minute to compile: the others in the long run."""
    seldom = [variant for variant in dict.fromkeys(others) if variant not in often]
    params = [(variant, ()) for variant in often] + [(variant, pytest.mark.sweep) for variant in seldom]
    return pytest.mark.parametrize(
        "variant", [pytest.param(v, marks=marks, id=v.name) for v, marks in params]
    )


# In their emulation tiles are read and written by functions that the sanitizers see.
memory_levels = levels([PLAIN], [AMX_EMULATED, BEST, VARIANTS[-1]])
thread_levels = levels([], [BEST, AMX_EMULATED])


def runtime(name: str) -> str | None:
    """Path of a sanitizer's runtime library, as the compiler finds it."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else None


def run_steps(library: Path, threads: int, runtimes: list[str], **options: str) -> None:
    """Run SCRIPT in a process that has ``runtimes`` loaded; what they report fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), str(threads)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": " ".join(runtimes), **options},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.strip() == "clean"


def sanitized(variant: Variant, flags: tuple[str, ...], *extra: Path) -> Path:
    try:
        return build(variant, cache_directory("kernels"), extra_flags=flags, extra_sources=extra)
    except KernelBuildError as error:
        pytest.skip(str(error))


def runtimes_of(*names: str) -> list[str]:
    paths = [runtime(name) for name in names]
    if None in paths:
        pytest.skip("the compiler has no sanitizers")
    return [path for path in paths if path is not None]


@memory_levels
def test_no_fault_is_found(variant: Variant) -> None:
    run_steps(
        sanitized(variant, MEMORY),
        2,
        runtimes_of("libasan.so", "libubsan.so"),
        ASAN_OPTIONS="detect_leaks=0",  # Python and torch keep what they allocate
        UBSAN_OPTIONS="print_stacktrace=1",
    )


@thread_levels
def test_no_race_is_found(variant: Variant) -> None:
    """Of the fastest level and its tiles: the kernels share their division of work between threads.

    Three threads, so that two of them may run against each other while the third is elsewhere.
    """
    run_steps(
        sanitized(variant, THREADS, OPENMP),
        3,
        runtimes_of("libtsan.so"),
        # What uninstrumented code does, torch's and Python's, is not looked at.
        TSAN_OPTIONS="halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1",
    )
