"""Compiles what steps launch for GPUs that are not there: ``python -m tests.support.compiled_kernels SET``.

The steps of small decoders with the heads of real ones are run with a driver that says it is such a GPU; what
they launch is compiled by Triton, with the compilers it brings, and never run. Prints a line of JSON for each
case: what its kernels take of a processor. Triton keeps what it has compiled: a second run takes seconds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from manylora.server.kernels.codes import Kind
from manylora.server.kernels.cuda import attention, prompts
from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.coded import products
from manylora.server.kernels.cuda.coded.products import CodedProduct
from manylora.server.kernels.cuda.fixed import products as fixed_products
from manylora.server.kernels.cuda.fixed.step import FixedStep
from manylora.server.kernels.cuda.layers import arguments
from manylora.server.kernels.inputs import lora_inputs
from tests.support.coded import random_codes
from tests.support.kernel_cases import Batcher, Mix, Pages, Shape, in_type, random_decoder

KIB = 1024
# Bytes of memory that the threads of one program can share, by architecture.
SHARED = {
    "sm75": 64 * KIB,
    "sm80": 163 * KIB,
    "sm86": 99 * KIB,
    "sm89": 99 * KIB,
    "sm90": 227 * KIB,
    "sm100": 227 * KIB,
    "gfx942": 64 * KIB,
}
_DECODES = ("c", "", "", "", "", "gc", "i")  # vectors of a module each, input gains among them


@dataclass(frozen=True)
class Case:
    """A decoder on an architecture."""

    arch: str
    model: str
    dtype: torch.dtype


MODELS: Mapping[str, Shape] = {
    "llama-3-8b": Shape(hidden=4096, heads=32, kv_heads=8, head_dim=128, layers=1),
    "smollm2-135m": Shape(heads=9, kv_heads=3, head_dim=64),
    "qwen2.5-7b": Shape(heads=28, kv_heads=4, head_dim=128, bias=True),
    "qwen3-8b": Shape(heads=32, kv_heads=8, head_dim=128, qk_norm=True),
    "phi-3-mini": Shape(heads=32, kv_heads=32, head_dim=96, stacked=True),
    "gemma-2-9b": Shape(
        heads=16, kv_heads=8, head_dim=256, windows=(32, None), post_norms=True, gelu=True,
        norm_offset=1.0, score_cap=50.0, logit_cap=30.0,
    ),
    "stablelm-80": Shape(heads=32, kv_heads=32, head_dim=80, turned=20),
}  # fmt: skip
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SOME = (
    Case("sm90", "llama-3-8b", BF16),
    Case("sm75", "qwen3-8b", FP16),
    Case("sm86", "smollm2-135m", FP32),
    Case("sm80", "gemma-2-9b", BF16),
    Case("sm89", "phi-3-mini", FP16),
    Case("sm100", "llama-3-8b", BF16),
    Case("gfx942", "llama-3-8b", BF16),
)
FEW = SOME[:2]
ALL = tuple(Case(arch, model, dtype) for arch in SHARED for model in MODELS for dtype in (BF16, FP16, FP32))


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes."""

    arch: str
    model: str
    dtype: str
    kernel: str
    warps: int
    shared: int  # bytes
    registers: int  # a thread
    spilled: int  # bytes a thread keeps outside its registers


class _Driver(DriverBase):  # type: ignore[misc]
    """Of a GPU that only the compiler is told of."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self._arch = arch
        amd = arch.startswith("gfx")
        self._target = (
            GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm")), 32)
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(ty)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return self._arch  # kernels are kept by device

    def get_current_stream(self, device: str) -> int:
        del device
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


@contextmanager
def compiling(case: Case, launched: list[tuple[str, str]] | None = None) -> Iterator[list[Compiled]]:
    """Compile what is launched inside, in place of running it.

    What is ``launched`` is noted, by the names of kernels and the digests of their binaries.
    """
    found: list[Compiled] = []
    launched = [] if launched is None else launched

    def note(src: Any, metadata: Mapping[str, Any], metadata_group: Mapping[str, str], **_: object) -> None:
        binary = next(Path(p) for name, p in metadata_group.items() if name.endswith((".cubin", ".amdgcn")))
        registers, spilled = (_of_amd if binary.suffix == ".amdgcn" else _of_nvidia)(binary)
        found.append(
            Compiled(
                case.arch, case.model, str(case.dtype).removeprefix("torch."), src.name,
                int(metadata["num_warps"]), int(metadata["shared"]), registers, spilled,
            )
        )  # fmt: skip

    run = JITFunction.run
    replaced = [
        (prompts, "shared_memory"),
        (prompts, "multiplies"),
        (attention, "multiplies"),
        (products, "multiplies"),
        (fixed_products, "multiplies"),
        (arguments, "multiplies"),
    ]
    before = [getattr(module, name) for module, name in replaced]

    def compile_only(kernel: Any, *args: Any, **options: Any) -> Any:
        made = run(kernel, *args, **{**options, "warmup": True})
        launched.append((kernel.fn.__name__, made.hash))
        return made

    JITFunction.run = compile_only
    slow = case.arch == "sm75" or case.dtype == torch.float32
    groups = not slow and not case.arch.startswith("gfx")  # AMD's want more columns than a group has
    values = SHARED[case.arch], not slow, not slow, not slow, not slow, groups
    for (module, name), value in zip(replaced, values, strict=True):
        setattr(module, name, lambda *_, value=value: value)
    triton.knobs.compilation.listener = note
    driver.set_active(_Driver(case.arch))
    try:
        yield found
    finally:
        JITFunction.run = run
        for (module, name), function in zip(replaced, before, strict=True):
            setattr(module, name, function)
        triton.knobs.compilation.listener = None


def _of_nvidia(cubin: Path) -> tuple[int, int]:
    """(registers, bytes on the stack) of a thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None, text
    return int(usage[1]), int(usage[2])


def _of_amd(assembly: Path) -> tuple[int, int]:
    text = assembly.read_text()

    def number(name: str) -> int:
        value = re.search(rf"\.{name}:\s+(\d+)", text)
        assert value is not None, name
        return int(value[1])

    return number("vgpr_count"), number("private_segment_fixed_size")


def compiled(case: Case) -> list[Compiled]:
    """What a step of decode rows and one of prompts launch, with adapters and without."""
    shape = MODELS[case.model]
    weights = in_type(case.dtype, random_decoder(shape))
    pages = Pages(weights)
    plain, vectors = pages.random(3, 1), pages.random(3, 2, vectors=_DECODES)
    launched: list[tuple[str, str]] = []
    with compiling(case, launched) as found:
        step = TritonStep(weights, pages.pool.to(case.dtype), num_blocks=8)
        for mix in ((), ((plain, 1.0),), ((vectors, 1.0),)):
            for counts in ((1, 1), (20, 5)):
                batcher = Batcher(8, weights.embedding.shape[0], first=1)
                work = [(batcher.sequence(count, mix), count) for count in counts]
                step.step(Batcher.step(work))
        for kind in (Kind.NIBBLES, Kind.BYTES, Kind.SHIFTED):
            _check_fixed_codes(kind, case, launched)
            product = CodedProduct(random_codes(kind, 64, 256, 128), None)
            for rows in (1, 64):
                product(torch.zeros(rows, 256, dtype=case.dtype))
        fixed = FixedStep(weights, pages.pool.to(case.dtype), num_blocks=8)
        mixes = [mix for mix in (((plain, 1.0),), ((vectors, 1.0),)) if _takes(fixed, mix)]
        _check_one_binary(fixed, mixes, launched)
    return found


def _check_fixed_codes(kind: Kind, case: Case, launched: list[tuple[str, str]]) -> None:
    """Assert that one binary multiplies any number of rows by codes."""
    product = CodedProduct(random_codes(kind, 64, 256, 128), None, fixed=True)
    launched.clear()
    for rows in (1, 3, 16, 64, 200):
        product(torch.zeros(rows, 256, dtype=case.dtype))
    assert len(launched) == 5
    assert len(set(launched)) == 1


def _takes(step: FixedStep, mix: Mix) -> bool:
    return step.fused.takes.all_of(lora_inputs([mix]))


def _check_one_binary(step: FixedStep, mixes: Sequence[Mix], launched: list[tuple[str, str]]) -> None:
    """Assert that in deterministic steps one binary stands at each place, whatever the rows are.

    What a binary computes of a row depends on that row alone. Steps of the base leave out those of adapters'
    pages. For rows that scale inputs there is another one between gate and down, which rounds every operation
    as the usual one does there.
    """
    places: dict[bool, set[tuple[tuple[str, str], ...]]] = {True: set(), False: set()}
    for mix in ((), *mixes):
        for counts in ((1,), (1, 1, 1), (20, 5), (1, 17)):
            batcher = Batcher(8, step.reference.weights.embedding.shape[0], first=1)
            inputs = Batcher.step([(batcher.sequence(n, mix), n) for n in counts])
            for run in (step.step, step.fused.step):
                launched.clear()
                run(inputs)
                places[bool(mix)].add(tuple(one for one in launched if one[0] != "gate_rows"))
    (adapted,), (base,) = places.values()
    assert base == tuple(one for one in adapted if one[0] not in ("shrink_tiles", "expand_tiles"))


def main() -> None:
    """Compile a set of cases: "few", "some", "all", or those of an architecture."""
    chosen = {"few": FEW, "some": SOME, "all": ALL}.get(
        sys.argv[1], tuple(c for c in ALL if c.arch == sys.argv[1])
    )
    with torch.inference_mode():
        for case in chosen:
            print(json.dumps([asdict(one) for one in compiled(case)]), flush=True)


if __name__ == "__main__":
    main()
