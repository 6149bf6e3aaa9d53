"""Which threads own OpenMP workers: the engine's, and no other.

torch's OpenMP runtime keeps a team of workers for every thread that ever ran a parallel operation.
Once there are more workers than cores, all of them wait by sleeping in the kernel instead of spinning,
and waking them costs a decode step of many small operations a quarter of its time.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_NICENESS = 10  # of threads that yield, above the process's own


def call_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``function`` returns or raises, run in a thread of its own, whose workers go with it."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*args, **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name="call", daemon=True).start()
    return outcome.result()


def background_pool(workers: int) -> ThreadPoolExecutor:
    """Threads for files and adapters. What they run of torch runs on the calling thread alone."""
    return ThreadPoolExecutor(workers, "background", initializer=_without_workers)


def yielding_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """The same for work that takes long: a step that wants the processor goes first."""
    return ThreadPoolExecutor(workers, name, initializer=_step_back)


def _step_back() -> None:
    """Raise the niceness of the calling thread: on Linux each thread has one of its own."""
    _without_workers()
    if sys.platform == "linux":
        with suppress(OSError):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + _NICENESS)


def _without_workers() -> None:
    """Give the calling thread no OpenMP workers; other threads keep theirs."""
    torch.get_num_threads()  # sets the thread up: done later, it would undo the next line
    set_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if set_threads is not None:  # another runtime where there is none: only slower
        set_threads(1)
