"""A stage: the decoder's steps, compared, counted and timed.

python -m bench.gpu_check.decoder BASE SIZE DEVICE
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from bench.gpu_check.plan import SIZES, Size
from bench.gpu_check.results import Part, Row, tell
from bench.steps import Machine, Shape, Workbench, measure_machine
from manylora.server.cli.loadgen.figures import percentile
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs
from manylora.server.kernels.inputs import StepInputs
from manylora.server.model.pages.uploads import upload_for
from manylora.server.model.warm_up import warm_up

STAGE = "decoder"
GIB = 1 << 30
_PROFILED = 20  # steps


class Check:
    """The parts of the stage, in order."""

    def __init__(self, base: Path, size: Size, device: torch.device) -> None:
        self.base, self.size, self.device = base, size, device
        self.gpu = device.type == "cuda"
        shapes = [*size.decode_shapes(), *size.prompt_shapes()]
        self.bench = Workbench(base, shapes, device=str(device), kernels="auto")
        self.shapes = shapes

    def memory(self) -> None:
        """What loading took at most, and what is left of it."""
        weights = self.bench.decoder.weight_bytes
        rows: list[Row] = [{"what": "weights", "GiB": weights / GIB}]
        ok = None
        if self.gpu:
            peak, now = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
            ours = self.bench.pool.nbytes + self.bench.blocks * self.bench.decoder.kv_bytes_per_block
            rows += [
                {"what": "at most allocated", "GiB": peak / GIB},
                {"what": "allocated beside adapters, keys and values", "GiB": (now - ours) / GIB},
                {"what": "reserved", "GiB": torch.cuda.memory_reserved() / GIB},
            ]
            ok = now - ours < 1.1 * weights + GIB
        tell(Part(STAGE, "memory", ok, "Of a base as it is loaded, and the step with its caches.", rows))

    def captures(self) -> None:
        """All decode steps captured, as before the first request."""
        free, began = free_bytes(self.device), perf_counter()
        context = max(self.size.contexts)
        sequences = max(self.size.batches)
        warm_up(self.bench.decoder, rows=self.size.batch_tokens, sequences=sequences, context=context)
        seconds, taken = perf_counter() - began, free - free_bytes(self.device)
        capturing = self.bench.decoder.capturing
        if capturing is None:
            return tell(Part(STAGE, "captures", None, "There are no CUDA graphs here."))
        chunks = capturing.chunks(self.size.batch_tokens, sequences, context)
        graphs, failed = 2 * (len(capturing.sizes(sequences, context)) + len(chunks)), capturing.num_failed
        note = f"{graphs} graphs in {seconds:.1f} s took {taken / GIB:.2f} GiB; {failed} failed."
        return tell(Part(STAGE, "captures", failed == 0, note))

    def failed_capture(self) -> None:
        """A function that can't be captured is run every time, and the graphs beside it go on."""
        if not self.gpu:
            return tell(Part(STAGE, "a capture that fails", None, "There are no CUDA graphs here."))
        logging.getLogger("manylora").setLevel(logging.ERROR)
        graphs, x, y = CudaGraphs(), torch.ones(4, device=self.device), torch.zeros(4, device=self.device)
        sums: list[float] = []

        def double() -> None:
            y.copy_(x * 2)

        graphs.run("good", double)
        graphs.run("bad", lambda: sums.append(float(x.sum())))
        x.fill_(3)
        graphs.run("good", double)
        graphs.run("bad", lambda: sums.append(float(x.sum())))
        own = torch.cuda.current_stream() == torch.cuda.default_stream()
        ok = graphs.num_failed == 1 and sums[-1] == 12.0 and y.tolist() == [6.0] * 4 and own
        return tell(Part(STAGE, "a capture that fails", ok, f"{sorted(map(str, graphs.keys))} have graphs."))

    def waits(self) -> None:
        """How often the host waits in a decode step, drawing aside."""
        inputs = self.bench.inputs(max(self.size.decode_shapes(), key=lambda s: (s.batch, s.distinct)))
        self.bench.decoder.step(inputs)
        with count_waits(self.gpu) as waits:
            self.bench.decoder.step(inputs)
        if not self.gpu:
            return tell(Part(STAGE, "waits", None, "A CPU has nobody to wait for."))
        return tell(Part(STAGE, "waits", not waits, f"{len(waits)} in a decode step: {waits[:3]}"))

    def launches(self) -> None:
        """Kernels of a decode step and of a step with a prompt, by time."""
        if not self.gpu:
            return tell(Part(STAGE, "launches", None, "There is no GPU to profile."))
        layers = self.size.base.layers
        for name, shape in (
            ("decode", Shape(32, self.size.context, self.size.rank, 32)),
            ("decode, base", Shape(32, self.size.context, self.size.rank, 0)),
            ("decode, 128 rows of one adapter", Shape(128, self.size.context, self.size.rank, 1)),
            ("decode, 128 rows of 128 adapters", Shape(128, self.size.context, self.size.rank, 128)),
            ("prompt", Shape(1, 1024, self.size.rank, 1, rows=1024)),
        ):
            rows, kernels, busy = profiled(self.bench.decoder.step, self.bench.inputs(shape))
            each = kernels / layers
            note = f"{kernels:.0f} kernels a step, {each:.1f} a layer; the GPU is busy {busy:.0%} of it."
            tell(Part(STAGE, f"launches, {name}", None, note, rows))
        return None

    def throughput(self, machine: Machine) -> None:
        """Tokens a second of decode steps."""
        shapes = self.size.decode_shapes()
        rows = self._timed(shapes, machine)
        tell(Part(STAGE, "decode steps", None, f"Context {self.size.context}, rank {self.size.rank}.", rows))

    def prefill(self, machine: Machine) -> None:
        """Tokens a second of prompts."""
        tell(Part(STAGE, "prompts", None, "", self._timed(self.size.prompt_shapes(), machine)))

    def _timed(self, shapes: list[Shape], machine: Machine) -> list[Row]:
        seconds = self.bench.seconds([self.bench.inputs(s) for s in shapes], repeat=self.size.repeat)
        return [
            {
                "sequences": shape.batch,
                "tokens of each": shape.rows,
                "adapters": shape.distinct,
                "ms": 1000 * time,
                "tokens/s": shape.batch * shape.rows / time,
                "of the roofline": self.bench.work(shape).least_seconds(machine) / time,
            }
            for shape, time in zip(shapes, seconds, strict=True)
        ]

    def uploads(self) -> None:
        """Decode steps while adapters arrive beside them, which must change neither bits nor, much, times."""
        shape = Shape(max(self.size.batches), self.size.context, self.size.rank, 0)
        inputs, decoder = self.bench.inputs(shape), self.bench.decoder
        target = self.bench.pool[-self.bench.pool.numel() // 4 :]
        source = torch.zeros(min(target.numel(), 64 << 20), dtype=target.dtype)
        upload, expected = upload_for(self.device), decoder.step(inputs).clone()
        alone = self._times(inputs)
        stop, sent = threading.Event(), [0]

        def send() -> None:
            while not stop.is_set():
                upload.send(source, target[: source.numel()])
                sent[0] += source.nbytes

        thread = threading.Thread(target=send)
        began = perf_counter()
        thread.start()
        try:
            beside = self._times(inputs)
            equal = bool(torch.equal(decoder.step(inputs), expected))
        finally:
            stop.set()
            thread.join()
        rate = sent[0] / (perf_counter() - began) / GIB
        note = f"{rate:.1f} GiB/s arrived; rows of the base {'kept their bits' if equal else 'CHANGED'}."
        rows: list[Row] = [
            {"steps": name, "median ms": 1000 * median(times), "p99 ms": 1000 * percentile(times, 0.99)}
            for name, times in (("alone", alone), ("beside uploads", beside))
        ]
        tell(Part(STAGE, "adapters that arrive", equal, note, rows))

    def _times(self, inputs: StepInputs) -> list[float]:
        return [self.bench.time(inputs) for _ in range(10 * self.size.repeat)]


def profiled(step: Callable[[StepInputs], object], inputs: StepInputs) -> tuple[list[Row], float, float]:
    """The kernels that take most of a step's time; how many kernels it launches; the GPU's share of it."""
    for _ in range(3):
        step(inputs)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = perf_counter()
        for _ in range(_PROFILED):
            step(inputs)
        torch.cuda.synchronize()
        wall = perf_counter() - began
    kernels: list[Any] = [e for e in profile.key_averages() if e.self_device_time_total > 0]
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    kernels.sort(key=lambda e: -e.self_device_time_total)
    rows: list[Row] = [
        {
            "kernel": e.key[:60],
            "a step": e.count / _PROFILED,
            "us each": e.self_device_time_total / e.count,
            "share": e.self_device_time_total / 1e6 / busy,
        }
        for e in kernels[:12]
    ]
    return rows, sum(e.count for e in kernels) / _PROFILED, busy / wall


@contextmanager
def count_waits(gpu: bool) -> Iterator[list[str]]:
    """Where, meanwhile, the host waited for the GPU: torch warns of it."""
    found: list[str] = []
    if not gpu:
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; 0 on a CPU, whose memory is not looked at."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def main(base: Path, size: str, device: str) -> None:
    """Run all parts."""
    check = Check(base, SIZES[size], torch.device(device))
    machine = measure_machine(check.device)
    read, product = machine.bytes_per_second / 1e12, machine.flops_per_second / 1e12
    note = f"{read:.2f} TB/s read, {product:.0f} TFLOP/s in bf16."
    tell(Part(STAGE, "the machine's roof", None, note))
    check.memory()
    check.failed_capture()
    check.captures()
    check.waits()
    check.throughput(machine)
    check.prefill(machine)
    check.uploads()
    check.launches()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
