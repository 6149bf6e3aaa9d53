"""Permission to use the processor's tile registers (Intel AMX), which Linux gives a process that asks."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache

_ARCH_PRCTL = 158  # number of the system call on x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_TILE_DATA = 18  # the state component of the registers' contents

logger = logging.getLogger(__name__)


@cache
def tiles_allowed() -> bool:
    """Ask for the tile registers, once a process and only where the processor has them; a refusal is logged.

    Holds for all threads of the process, and for those it starts later.
    """
    if reason := refusal():
        logger.warning("No CPU kernels for amx: the system refuses tile registers: %s", reason)
    return reason is None


def refusal() -> str | None:
    """Ask the system. Its error in its own words, None if it agreed."""
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA) == 0:
        return None
    return os.strerror(ctypes.get_errno())
