"""Threads that must not bring OpenMP workers with them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from manylora.server.threads import call_in_thread, request_pool


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _parallel_work() -> int:
    """Something torch spreads over threads where it may; the number of threads of the process then."""
    torch.rand(4_000_000).mul_(2).sum()
    return _threads()


def test_background_threads_start_no_workers() -> None:
    with request_pool(1) as pool:
        pool.submit(int).result()
        before = _threads()
        assert pool.submit(_parallel_work).result() == before
        assert pool.submit(torch.get_num_threads).result() == 1


def test_a_call_runs_in_another_thread_and_returns_its_result() -> None:
    assert call_in_thread(threading.get_ident) != threading.get_ident()


def test_what_a_call_raises_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        call_in_thread(lambda: 1 / 0)
