"""Faults of steps: memory that runs out, a device that is lost, a step that hangs."""

from __future__ import annotations

import faulthandler
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

DeviceWorks = Callable[[], bool]  # whether the accelerator still computes; asked after a step raised
# An error of these words is left in the context of the device: every later call raises it again.
_STICKY = (
    "illegal memory access",
    "device-side assert",
    "misaligned address",
    "illegal instruction",
    "illegal address",
    "invalid program counter",
    "launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ecc",
    "unrecoverable",
    "device is lost",
    "gpu is lost",
)
_NO_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")


@dataclass(frozen=True)
class Supervision:
    """How an engine is looked after. By default not at all: a CPU neither gets lost nor hangs."""

    works: DeviceWorks | None = None  # asked on the engine's thread after a step raised
    step_timeout: float | None = None  # seconds, after which a step counts as hanging
    warm_up: Callable[[], None] | None = None  # runs on the engine's thread before the first step
    # Waits, on a thread of its own, until no step can run any more; why, or None if the server ends.
    until_lost: Callable[[], str | None] | None = None


class DeviceLost(Exception):
    """The accelerator answers with an error, whatever it is asked: only a new process can use it again."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed because memory was short, after which the next one may well run."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def is_lost(error: BaseException, works: DeviceWorks | None) -> bool:
    """Whether the device that a step ran on is lost; ``works`` is None for a CPU, which never is."""
    if works is None or is_out_of_memory(error):
        return False
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _STICKY):
        return True
    return not works()


def device_works(device: torch.device) -> bool:
    """Let the device compute a number and look at it: with a sticky error that raises."""
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    except RuntimeError as error:
        if is_out_of_memory(error):  # which says nothing of the device itself
            return True
        logger.critical("%s does not compute any more: %s", device, error)
        return False


def give_back_cached() -> None:
    """Give memory that the allocator keeps for later back to the device: it may be in pieces too small."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show_threads() -> None:
    """Write where every thread is to stderr: of a step that hangs nothing else would be known."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
