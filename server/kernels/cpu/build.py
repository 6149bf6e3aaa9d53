"""Compiles the C++ sources with the system's compiler, for one instruction set at a time.

A library's name is made from everything that goes into it, so a change of any of it builds anew and nothing
is ever rebuilt in place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# The one import from the adapters: locks between processes exist once, and this module of theirs needs the
# standard library alone.
from manylora.adapters.file_locks import locked
from manylora.server.kernels.cpu.tiles import tiles_allowed

SOURCES = Path(__file__).parent / "src"

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # a row's bits must not depend on which tile height the compiler fused where
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-uninitialized",  # GCC 12 sees uninitialized operands in its own AVX-512 headers
    "-Wno-maybe-uninitialized",
)


@dataclass(frozen=True)
class Variant:
    """One instruction set the sources can be compiled for."""

    name: str
    cpu_flags: frozenset[str]  # of /proc/cpuinfo, all needed
    compiler_flags: tuple[str, ...]
    machines: tuple[str, ...] | None = None  # None: any
    tiles: bool = False  # needs the system's permission to use tile registers


_X86 = ("x86_64", "AMD64")
_V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"})  # all that x86-64-v3 may use
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

VARIANTS = (  # fastest first
    Variant(
        "amx",
        _V4 | {"avx512_bf16", "amx_tile", "amx_bf16"},
        ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DML_AMX"),
        _X86,
        tiles=True,
    ),
    Variant(
        "avx512-bf16",
        _V4 | {"avx512_bf16"},
        ("-march=x86-64-v4", "-mavx512bf16"),
        _X86,
    ),
    Variant("avx2", _V3, ("-march=x86-64-v3",), _X86),
    Variant("portable", frozenset(), ()),
)

# Level ``amx`` with its tile products in plain C++, the same bits: for tests, on any machine.
AMX_EMULATED = Variant("amx-emulated", frozenset(), ("-DML_AMX_EMULATED",))


class KernelBuildError(RuntimeError):
    """The kernels can't be compiled here; the message says why in one line."""


def usable_variants() -> tuple[Variant, ...]:
    """What this machine can run, fastest first. Asks the system for what needs its permission."""
    flags = cpu_flags()
    able = (variant for variant in compilable_variants() if variant.cpu_flags <= flags)
    return tuple(variant for variant in able if not variant.tiles or tiles_allowed())


def compilable_variants() -> tuple[Variant, ...]:
    """What a compiler on this machine can make, whether or not this very CPU can run it."""
    return tuple(v for v in VARIANTS if v.machines is None or platform.machine() in v.machines)


def file_name(variant: Variant, extra_flags: tuple[str, ...] = (), extra: tuple[Path, ...] = ()) -> str:
    """Name of the library made of the sources as they are, of ``extra`` ones, and of the flags.

    The compiler has no part in it: a library can be found where there is none.
    """
    digest = hashlib.sha256()
    for part in (sys.platform, platform.machine(), *_FLAGS, *variant.compiler_flags, *extra_flags):
        digest.update(part.encode() + b"\0")
    for source in (*sorted(SOURCES.iterdir()), *extra):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return f"manylora-{variant.name}-{digest.hexdigest()[:16]}.so"


def build(
    variant: Variant,
    directory: Path,
    *,
    extra_flags: tuple[str, ...] = (),
    extra_sources: tuple[Path, ...] = (),
) -> Path:
    """The library of ``variant`` in ``directory``, compiled unless it is there already.

    A second process that wants the same one waits for the first. Files appear whole.

    Raises:
        KernelBuildError: no compiler, or it fails.
        OSError: the directory can't be written.
    """
    target = directory / file_name(variant, extra_flags, extra_sources)
    if target.exists():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")):
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(prefix="manylora-kernels-") as work:
            sources = (*sorted(SOURCES.glob("*.cpp")), *extra_sources)
            built = _compile(compile_command(variant, extra_flags), sources, Path(work))
            arriving = target.with_suffix(".new")
            try:
                shutil.copyfile(built, arriving)
                arriving.replace(target)
            finally:
                arriving.unlink(missing_ok=True)
    return target


def compile_command(variant: Variant, extra_flags: tuple[str, ...] = ()) -> list[str]:
    """The compiler, and what it is told of every source of ``variant``.

    Raises:
        KernelBuildError: there is none.
    """
    return [_compiler(), *_FLAGS, *variant.compiler_flags, *extra_flags, "-I", str(SOURCES)]


def _compile(command: list[str], sources: tuple[Path, ...], work: Path) -> Path:
    objects = [work / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_run, [*command, "-c", str(source), "-o", str(out)])
            for source, out in zip(sources, objects, strict=True)
        ]
        for job in jobs:
            job.result()
    built = work / "kernels.so"
    # Said although C++ drivers imply it: PEFT's BOFT sets CXX to gcc for the whole process.
    runtime = ["-lstdc++"] if sys.platform == "linux" else []
    _run([*command, "-shared", *map(str, objects), *runtime, "-o", str(built)])
    return built


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        detail = (errors or done.stderr.splitlines() or ["no message"])[0]
        raise KernelBuildError(f"{command[0]} failed: {detail}")


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "c++", "clang++"]:
        if found := shutil.which(name):
            return found
    raise KernelBuildError("no C++ compiler found (install g++, or set CXX)")


def cpu_flags() -> frozenset[str]:
    """Features of the CPU by their Linux names, as far as the kernel enabled them; empty where the system
    does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())
