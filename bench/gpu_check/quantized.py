"""A stage: a base in 4 and in 8 bits.

python -m bench.gpu_check.quantized BASE SIZE DEVICE
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from time import perf_counter

import torch

from bench.gpu_check.decoder import count_waits
from bench.gpu_check.plan import SIZES
from bench.gpu_check.results import Part, Row, tell
from bench.steps import Workbench
from manylora.server.memory_budget import return_freed

STAGE = "quantized"


def main(base: Path, size: str, device: str) -> None:
    """Time decode steps of both."""
    if importlib.util.find_spec("bitsandbytes") is None:
        tell(Part(STAGE, "nf4 and int8", None, "bitsandbytes is not installed."))
        return
    plan = SIZES[size]
    shapes = [shape for shape in plan.decode_shapes() if shape.distinct in {0, shape.batch}]
    for kind in ("nf4", "int8"):
        began = perf_counter()
        bench = Workbench(base, shapes, device=device, kernels="auto", quantize=kind)
        loaded = perf_counter() - began
        inputs = [bench.inputs(shape) for shape in shapes]
        seconds = bench.seconds(inputs, repeat=plan.repeat)
        with count_waits(bench.device.type == "cuda") as waits:
            logits = bench.decoder.step(inputs[-1])
        rows: list[Row] = [
            {"sequences": s.batch, "adapters": s.distinct, "ms": 1000 * t, "tokens/s": s.batch / t}
            for s, t in zip(shapes, seconds, strict=True)
        ]
        note = (
            f"{bench.decoder.kernels} kernels, {bench.decoder.weight_bytes / 2**30:.1f} GiB, loaded in "
            f"{loaded:.0f} s; {len(waits)} waits of the host in a step."
        )
        ok = bool(torch.isfinite(logits.float()).all()) and not waits
        tell(Part(STAGE, kind, ok, note, rows))
        del bench, logits
        return_freed(torch.device(device))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
