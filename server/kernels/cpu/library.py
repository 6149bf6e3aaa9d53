"""Finds the native library to run: built ahead of time, in the cache, or compiled now."""

from __future__ import annotations

import ctypes
import logging
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from manylora.server.cache_directory import cache_directory
from manylora.server.kernels.cpu import abi
from manylora.server.kernels.cpu.build import KernelBuildError, Variant, build, file_name, usable_variants

logger = logging.getLogger(__name__)

AHEAD_OF_TIME = Path(__file__).parent / "built"  # filled by ``manylora build-kernels``


@dataclass(frozen=True, slots=True)
class Library:
    """The native kernels, loaded, and where they came from."""

    variant: Variant
    native: ctypes.CDLL
    origin: str  # where they came from, in one phrase


@cache
def best_library() -> Library:
    """The library for the best instruction set of this machine that can be had, once a process.

    Raises:
        KernelBuildError: there is none and none can be compiled; the message says why in one line.
    """
    return find_library(usable_variants(), AHEAD_OF_TIME, cache_directory("kernels"))


def natively_faster() -> bool:
    """Whether products in bf16 are fast in these kernels and slow in PyTorch: without AVX-512, with AVX2."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    try:
        return bool(best_library().variant.cpu_flags)  # not the portable one
    except KernelBuildError:
        return False


def find_library(variants: tuple[Variant, ...], ahead_of_time: Path, cache_dir: Path) -> Library:
    """The library of the first of ``variants`` that can be had.

    Raises:
        KernelBuildError: none can.
    """
    failures: list[str] = []
    for variant in variants:
        try:
            found = _existing(variant, ahead_of_time, cache_dir) or _compiled(variant, cache_dir)
        except (KernelBuildError, ImportError, OSError) as error:
            logger.warning("No CPU kernels for %s: %s", variant.name, error)
            failures.append(str(error))
        else:
            logger.info("CPU kernels: %s, %s", variant.name, found.origin)
            return found
    raise KernelBuildError(failures[0])


def _existing(variant: Variant, ahead_of_time: Path, cache_dir: Path) -> Library | None:
    for directory, origin in ((ahead_of_time, "built ahead of time"), (cache_dir, "from the cache")):
        path = directory / file_name(variant)
        if not path.exists():
            continue
        try:
            return Library(variant, abi.load(path), origin)
        except (OSError, ImportError) as error:  # made on a system with other libraries
            logger.warning("%s does not load here: %s", path, error)
            with suppress(OSError):
                path.unlink()
    return None


def _compiled(variant: Variant, cache_dir: Path) -> Library:
    """Compile into the cache; where that can't be written, for this process alone."""
    logger.info("Compiling the CPU kernels for %s; the next start finds them in %s", variant.name, cache_dir)
    start = time.monotonic()
    try:
        native = abi.load(build(variant, cache_dir))
    except OSError as error:
        logger.warning("The kernel cache can't be used, every start will compile: %s", error)
        with tempfile.TemporaryDirectory(prefix="manylora-kernels-") as private:
            native = abi.load(build(variant, Path(private)))
    return Library(variant, native, f"compiled in {time.monotonic() - start:.0f} s")
