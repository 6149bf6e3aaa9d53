"""Compiles the C++ sources with the system's compiler, once per source, compiler and instruction set.

The library lands in a cache directory under a name made from everything that goes into it, so a change
of any of it builds anew and nothing is ever rebuilt in place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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


_X86 = ("x86_64", "AMD64")

VARIANTS = (  # fastest first
    Variant(
        "avx512-bf16",
        frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
        ("-march=x86-64-v4", "-mavx512bf16"),
        _X86,
    ),
    Variant("avx2", frozenset({"avx2", "fma", "bmi2", "f16c"}), ("-march=x86-64-v3",), _X86),
    Variant("portable", frozenset(), ()),
)


class KernelBuildError(RuntimeError):
    """The kernels can't be compiled here; the message says why in one line."""


def best_variant() -> Variant:
    """The fastest variant this machine can run."""
    flags = _cpu_flags()
    return next(v for v in VARIANTS if v.cpu_flags <= flags and _matches(v))


def library(variant: Variant, cache: Path | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """Path of the compiled library of ``variant``, compiling it if the cache does not have it.

    Raises:
        KernelBuildError: no compiler, it fails, or the cache can't be written.
    """
    compiler = _compiler()
    sources = sorted(SOURCES.glob("*.cpp"))
    flags = (*_FLAGS, *variant.compiler_flags, *extra_flags)
    directory = cache if cache is not None else _default_cache()
    target = directory / f"manylora-{variant.name}-{_key(compiler, flags)}.so"
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix="build-") as work:
            built = _compile(compiler, flags, sources, Path(work))
            built.replace(target)  # atomic: a second process finds a whole file or none
    except OSError as error:
        raise KernelBuildError(f"the kernel cache {directory} can't be written: {error}") from error
    return target


def _compile(compiler: str, flags: tuple[str, ...], sources: list[Path], work: Path) -> Path:
    objects = [work / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_run, [compiler, *flags, "-c", str(source), "-o", str(out)])
            for source, out in zip(sources, objects, strict=True)
        ]
        for job in jobs:
            job.result()
    built = work / "kernels.so"
    _run([compiler, *flags, "-shared", *map(str, objects), "-o", str(built)])
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


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    for part in (version, platform.machine().encode(), *(flag.encode() for flag in flags)):
        digest.update(part + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "manylora" / "kernels"


def _matches(variant: Variant) -> bool:
    return variant.machines is None or platform.machine() in variant.machines


def _cpu_flags() -> frozenset[str]:
    """Features of the CPU by their Linux names; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())
