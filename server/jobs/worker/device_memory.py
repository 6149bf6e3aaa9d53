"""The memory of a GPU, which jobs ask for before they begin, and wait for if others have it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

LOOK_SECONDS: Final = 2.0  # seconds; servers and other processes free memory without a word
_MOST = 0.9  # of the device's memory, that is waited for at most: what a job needs is an estimate


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes of a device."""

    free: int
    own: int  # that this process has taken from it
    total: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a job needs."""

    own: int  # bytes of itself
    base: int  # bytes of the base
    shares: bool  # the base is that of all others that share it


class DeviceMemory:
    """Who has how much of the device's memory in this process. Its jobs' threads."""

    def __init__(self, figures: Callable[[], Figures | None]) -> None:
        """``figures`` are the device's of now; None: memory need not be asked for."""
        self._figures = figures
        self._claims: dict[str, Claim] = {}
        self._changed = threading.Condition()

    @property
    def is_asked_for(self) -> bool:
        return self._figures() is not None

    @contextmanager
    def claimed(
        self, job: str, claim: Claim, waits: Callable[[int, int], object], is_over: Callable[[], bool]
    ) -> Iterator[bool]:
        """Have the memory that a job claims within the block, once it is there.

        Args:
            job: its id.
            claim: what it needs.
            waits: told once, if it has to wait, how many bytes are needed and how many there are for it.
            is_over: whether it is to wait no longer.

        Yields:
            Whether it has the memory; False: the wait was given up.
        """
        told = False
        with self._changed:
            while not is_over():
                needed, there = self._asked(claim)
                if needed <= there:
                    self._claims[job] = claim
                    break
                if not told:
                    waits(needed, there)
                    told = True
                self._changed.wait(LOOK_SECONDS)
            has_it = job in self._claims
        try:
            yield has_it
        finally:
            with self._changed:
                self._claims.pop(job, None)
                self._changed.notify_all()

    def _asked(self, claim: Claim) -> tuple[int, int]:
        """Bytes that a claim adds to what jobs here have, and bytes that are there beside that."""
        figures = self._figures()
        if figures is None:
            return 0, 0
        before = _sum(list(self._claims.values()))
        needed = _sum([*self._claims.values(), claim]) - before
        return min(needed, int(_MOST * figures.total)), max(0, figures.free + figures.own - before)


def cuda_figures() -> Figures | None:
    """Those of the GPU that training here would use; None where it would use the CPU."""
    import torch  # noqa: PLC0415  (slow)

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Figures(free, torch.cuda.memory_reserved(), total)


def no_figures() -> None:
    """Those of a place where memory need not be asked for."""


def _sum(claims: list[Claim]) -> int:
    """The base of those that share it counts once."""
    shared = max((claim.base for claim in claims if claim.shares), default=0)
    return shared + sum(claim.own + (0 if claim.shares else claim.base) for claim in claims)
