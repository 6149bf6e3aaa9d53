"""The threads beside the engine's: which there are, and that none of them brings OpenMP workers.

torch's OpenMP runtime keeps a team of workers for every thread that ever ran a parallel operation.
Once there are more workers than cores, all of them wait by sleeping in the kernel instead of spinning,
and waking them costs a decode step of many small operations a quarter of its time.
"""

from __future__ import annotations

import asyncio
import atexit
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

_SLOW_WORKERS = 10
_NICENESS = 10  # of threads that yield, above the process's own


def call_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``function`` returns or raises, run in a thread of its own, whose workers go with it.

    If the process is told to end meanwhile (``SystemExit``), it ends with that status though the thread
    runs on.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*args, **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    thread = Thread(target=run, name="call", daemon=True)
    thread.start()
    try:
        return outcome.result()
    except SystemExit as leaving:
        if thread.is_alive():
            atexit.register(_end_with, leaving.code if isinstance(leaving.code, int) else 1, thread)
        raise


def _end_with(status: int, thread: Thread) -> None:
    """End the process at once if ``thread`` still runs.

    The interpreter, as it ends, stops a thread at its next wait for the interpreter's lock; in the middle of
    torch's C++ that is a call of ``std::terminate``: a core dump and another status.
    """
    if thread.is_alive():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def request_pool(workers: int) -> ThreadPoolExecutor:
    """Threads for what requests wait for: files, templates, tokens. torch takes no workers there."""
    return ThreadPoolExecutor(workers, "requests", initializer=_without_workers)


def yielding_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """Threads of low priority: a step of the engine that wants the processor goes first."""
    return ThreadPoolExecutor(workers, name, initializer=_lower_priority)


class SlowWork:
    """Threads of low priority for everything that may take seconds, shared by several kinds of work.

    Each kind has a limit of its own, so that none can take all threads from the others.
    """

    def __init__(self) -> None:
        self._pool = yielding_pool(_SLOW_WORKERS, "slow")
        self._granted = 0

    def limited(self, workers: int) -> LimitedWork:
        """A kind of work that takes at most ``workers`` of the threads. The limits of all kinds must fit."""
        self._granted += workers
        assert self._granted <= _SLOW_WORKERS, "a kind of work could starve another"
        return LimitedWork(self._pool, workers)

    def close(self) -> None:
        """Begin nothing more. What still runs, because it waits for a network, is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class LimitedWork:
    """One kind of slow work, of which only so much runs at a time; the rest waits in order."""

    def __init__(self, pool: ThreadPoolExecutor, workers: int) -> None:
        self._pool = pool
        self._free = asyncio.Semaphore(workers)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """What ``work`` returns or raises, run in one of the threads."""
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


def _lower_priority() -> None:
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
