"""The native step under the address and undefined-behaviour sanitizers, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.kernels.cpu.build import VARIANTS, KernelBuildError, Variant, best_variant, library

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")

SCRIPT = """
import sys
from pathlib import Path
import server.kernels.cpu.backend as backend
from tests.kernels.worlds import VECTORS, Batcher, Pages, Shape, random_decoder

backend.library = lambda variant: Path(sys.argv[1])
for shape in (
    Shape(layers=1, bias=True, qk_norm=True, windows=(40,)),
    Shape(layers=1, heads=9, kv_heads=3, head_dim=80, hidden=48, intermediate=80, vocab=33),
):
    weights = random_decoder(shape)
    pages = Pages(weights, elements=1 << 18)
    one, two = pages.random(5, seed=1), pages.random([17, 1, 0, 5, 16, 3, 2], seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    scales_only = pages.random(0, seed=4, vectors=["gci"] * 7)
    native = backend.NativeStep(weights, pages.pool[: pages.used], 48, 4, 2)
    batch = Batcher(48, shape.vocab)
    mixes = (
        (), ((one, 1.0),), ((two, 1.0),), ((one, -0.5), (two, 1.5)),
        ((scaled, 1.0),), ((scales_only, 1.0),), ((one, 1.0), (scales_only, 0.5), (scaled, -1.0)),
    )
    sequences = [batch.sequence(n, m) for n, m in zip((200, 17, 40, 5, 30, 5, 6), mixes)]
    for take in (lambda s: len(s.tokens) - 2, lambda s: 1, lambda s: 1):
        assert native.step(batch.step([(s, take(s)) for s in sequences], all_logits=True)).isfinite().all()
    assert native.step(batch.step([(batch.sequence(1), 1)])).isfinite().all()
    del native
print("clean")
"""


def runtime(name: str) -> str | None:
    """Path of a sanitizer's runtime library, as the compiler finds it."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else None


@pytest.mark.parametrize(
    "variant", sorted({best_variant(), VARIANTS[-1]}, key=VARIANTS.index), ids=lambda variant: variant.name
)
def test_no_fault_is_found(variant: Variant) -> None:
    preload = [runtime("libasan.so"), runtime("libubsan.so")]
    if None in preload:
        pytest.skip("the compiler has no sanitizers")
    try:
        built = library(variant, extra_flags=FLAGS)
    except KernelBuildError as error:
        pytest.skip(str(error))
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(str(path) for path in preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they allocate
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(built)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "clean"
