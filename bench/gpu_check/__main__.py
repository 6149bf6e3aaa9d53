"""Check a GPU in one command: does everything run on it, how fast, and what happens when it fails.

    python -m bench.gpu_check                    # Llama 3.1 8B's shape, under eight minutes on an H100
    python -m bench.gpu_check --size tiny --device cpu    # the whole script on a CPU

Every stage is a process of its own: an error that stays in the device ends one of them. Each part is written
as it is found, to a JSON file and to a page in Markdown; the last line says where they are. The exit status
is 1 if anything is wrong, as is a stage that ended too early.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Annotated

import torch
import typer

from bench import machine
from bench.gpu_check.base import write_base
from bench.gpu_check.plan import SIZES, Size
from bench.gpu_check.results import Part, Results, heard
from bench.run import RESULTS

_SHARED_MEMORY = Path("/dev/shm")
_SHOWN = 1500  # characters of what a stage that failed said last
_SHALLOW = 4  # layers of the base that is compared with float32
_ENDING = 30  # seconds that an interrupted stage may take to end
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """A part of the check in a process of its own."""

    name: str
    arguments: tuple[str, ...]
    seconds: float  # after which it is ended
    alone: bool = True  # it measures times

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", f"bench.gpu_check.{self.name}", *self.arguments]

    def run(self, results: Results, until: float) -> None:
        """Run it until it ends, keeping what it tells; at most until ``until`` of the monotonic clock."""
        seconds = min(self.seconds, until - monotonic())
        if seconds < 1:
            results.add(Part(self.name, "the stage", False, "There was no time left for it."))
            return
        with (
            subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=_ROOT,
                start_new_session=True,
            ) as process,
            ThreadPoolExecutor(1) as reader,
        ):
            assert process.stdout is not None
            assert process.stderr is not None
            errors = reader.submit(process.stderr.read)
            # A stage that is interrupted ends the servers that it has started.
            watches = [
                Timer(seconds, process.send_signal, (signal.SIGINT,)),
                Timer(seconds + _ENDING, process.kill),
            ]
            for watch in watches:
                watch.start()
            for line in process.stdout:
                if (part := heard(line)) is not None:
                    results.add(part)
            code = process.wait()
            for watch in watches:
                watch.cancel()
            if code:
                note = f"It ended with {code} within its {seconds:.0f} s. {errors.result()[-_SHOWN:]}"
                results.add(Part(self.name, "the stage", False, note))


def main(
    *,
    size: Annotated[str, typer.Option(help="8b, or tiny: the whole script in a minute on a CPU.")] = "8b",
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu.")] = "cuda",
    stage: Annotated[list[str] | None, typer.Option(help="Run only these: kernels, faults, …")] = None,
    minutes: Annotated[float, typer.Option(help="For all of it.")] = 8.0,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = RESULTS,
) -> None:
    """Run the stages; the result is kept as it grows."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            "torch finds no CUDA device; --size tiny --device cpu runs the script on a CPU"
        )
    until = monotonic() + 60 * minutes
    started = datetime.now(UTC)
    about = {"started": f"{started:%Y-%m-%dT%H:%M:%SZ}", **machine.setting(), "size": size, "device": device}
    results = Results(out, f"{started:%Y%m%d-%H%M%S}-gpu-check", about)
    shared = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) and size != "tiny" else None
    with tempfile.TemporaryDirectory(dir=shared) as scratch:
        stages = [s for s in stages_of(size, device, Path(scratch)) if not stage or s.name in stage]
        run(stages, SIZES[size], Path(scratch), results, until)
    print(f"{len(results.parts)} parts, {len(results.faults)} of them wrong: {results.path}, {results.page}")
    raise typer.Exit(1 if results.faults else 0)


def stages_of(size: str, device: str, scratch: Path) -> list[Stage]:
    """All stages, those that measure times last."""
    base, faulty, shallow = (str(scratch / name) for name in ("base", "faulty", "shallow"))
    return [
        Stage("kernels", (size,), 240, alone=False),
        Stage("faults", (faulty, device), 180, alone=False),
        Stage("agreement", (shallow, size, device), 180, alone=False),
        Stage("decoder", (base, size, device), 240),
        Stage("serving", (base, size, device), 200),
        Stage("quantized", (base, size, device), 180),
        Stage("deterministic", (base, size, device), 180),
    ]


def run(stages: Sequence[Stage], plan: Size, scratch: Path, results: Results, until: float) -> None:
    """Those that measure no times run at once, while the base is written."""
    began, device = monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_base(scratch / "faulty", plan.faulty, device)
    write_base(scratch / "shallow", replace(plan.base, layers=min(plan.base.layers, _SHALLOW)), device)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(s.run, results, until) for s in stages if not s.alone]
        if any(s.alone for s in stages):
            write_base(scratch / "base", plan.base, device)
            results.add(Part("base", "written", None, f"In {monotonic() - began:.0f} s."))
        for future in running:
            future.result()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for one in stages:
        if one.alone:
            one.run(results, until)


if __name__ == "__main__":
    typer.run(main)
