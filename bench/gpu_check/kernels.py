"""A stage: the tests of the Triton kernels, compiled for this GPU instead of interpreted.

python -m bench.gpu_check.kernels SIZE
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.gpu_check.results import Part, tell

_TESTS = (
    "kernels/test_triton_*.py",
    "kernels/test_chunk_graphs.py",
    "kernels/test_cuda_graphs.py",
    "kernels/test_device_draws.py",
    "parallel/test_gpu.py",
)
_FEW = ("kernels/test_cuda_graphs.py",)  # of a machine that would have to interpret them
_ROOT = Path(__file__).parents[2]
_SHOWN = 12


def main(size: str) -> None:
    """Run them and say which fail."""
    folder = _ROOT / "tests" / "server"
    files = [str(path) for name in (_FEW if size == "tiny" else _TESTS) for path in sorted(folder.glob(name))]
    workers = max(1, min(12, (os.cpu_count() or 1) - 4))
    options = ["-p", "no:cacheprovider", "-p", "no:benchmark", "--tb=line", "-rfE", "--dist", "load"]
    command = [sys.executable, "-m", "pytest", *options, "-n", str(workers), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    summary = next(
        (line for line in reversed(done.stdout.splitlines()) if re.search(r"\d+ passed", line)), ""
    )
    failed = [line[:300] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    note = summary.strip("= ") or done.stdout[-300:] + done.stderr[-600:]
    tell(Part("kernels", "tests", done.returncode == 0, note, [{"failed": line} for line in failed[:_SHOWN]]))


if __name__ == "__main__":
    main(sys.argv[1])
