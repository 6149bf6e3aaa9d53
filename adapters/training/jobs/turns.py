"""Threads of which one runs at a time, each with the random numbers of its own, and that meet at their steps.

Training libraries keep state for a whole process: generators of random numbers, and what accelerate knows of
data loaders. A thread that gets its turn finds that state as it left it, so that a run among others takes the
steps that it takes alone. Where all threads have brought something to the meeting, it is worked on at once.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.state import GradientState

Work = Callable[[Sequence[Any]], Sequence[Any]]  # what the threads brought -> what each of them gets


@dataclass(eq=False)
class _Thread:
    """One that takes part."""

    brought: Any = None
    got: Any = None
    failed: BaseException | None = None  # the work on what was brought
    state: ProcessState | None = None  # None: it has not given up its turn yet


class Turns:
    """Lets one of the threads that take part run at a time. Any thread may come at any time, and leave."""

    def __init__(self, work: Work) -> None:
        """``work`` is done on what all threads have brought, by one of them, which has the turn."""
        self._work = work
        self._changed = threading.Condition()
        self._ready: deque[_Thread] = deque()  # to run, in this order
        self._met: list[_Thread] = []
        self._turn: _Thread | None = None
        self._local = threading.local()

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Wait for this thread's turn, and take part within the block."""
        thread = self._local.thread = _Thread()
        with self._changed:
            self._ready.append(thread)
            if self._turn is None:
                self._pass_on()
            self._changed.wait_for(lambda: self._turn is thread)
        try:
            yield
        finally:
            with self._changed:
                self._pass_on()

    def meet(self, brought: Any) -> Any:
        """Give up the turn until all threads have come here; what the work made of what this one brought.

        Raises:
            Exception: whatever the work raised, in all threads.
        """
        thread: _Thread = self._local.thread
        with self._changed:
            assert self._turn is thread, "only who has the turn runs"
            thread.brought = brought
            is_alone = not self._ready and not self._met
            self._met.append(thread)
            if not is_alone:
                thread.state = ProcessState.taken()
                self._pass_on()
                self._changed.wait_for(lambda: self._turn is thread)
        if self._met and self._met[0] is thread:  # all are here, and this one is to do the work
            self._work_on(thread)
        if thread.state is not None:
            thread.state.restore()
            thread.state = None
        got, failed = thread.got, thread.failed
        thread.brought = thread.got = thread.failed = None
        if failed is not None:
            raise failed
        return got

    def _work_on(self, first: _Thread) -> None:
        met = self._met
        got: Sequence[Any] = [None] * len(met)
        failed: BaseException | None = None
        try:
            got = self._work([each.brought for each in met])
        except Exception as error:
            failed = error
        with self._changed:
            for each, one in zip(met, got, strict=True):
                each.got, each.failed = one, failed
            self._met = []
            self._ready.extendleft(each for each in reversed(met) if each is not first)

    def _pass_on(self) -> None:
        """Let the next thread run; where all have come to the meeting, the first of them."""
        if self._ready:
            self._turn = self._ready.popleft()
        else:
            self._turn = self._met[0] if self._met else None
        self._changed.notify_all()


@dataclass(frozen=True)
class ProcessState:
    """What a run changes of the whole process."""

    python: Any  # generators of random numbers: Python's, NumPy's, PyTorch's
    arrays: Any
    tensors: torch.Tensor
    cuda: list[torch.Tensor] = field(default_factory=list)  # by device
    loaders: dict[str, Any] = field(default_factory=dict)  # accelerate's: which is being read, and how far

    @classmethod
    def taken(cls) -> ProcessState:
        """The state of now."""
        return cls(
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            dict(GradientState._shared_state),
        )

    def restore(self) -> None:
        """Make it the process's again."""
        random.setstate(self.python)
        np.random.set_state(self.arrays)
        torch.set_rng_state(self.tensors)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        shared = GradientState._shared_state  # all of accelerate's objects have this very one
        shared.clear()
        shared.update(self.loaders)
