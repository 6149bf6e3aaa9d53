"""Threads that must not bring OpenMP workers with them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from manylora.server.threads import call_in_thread, has_spare_core, request_pool


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


def test_a_core_is_to_spare_beside_fewer_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for cores, spare in ((1, False), (2, False), (3, True)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert has_spare_core(cpu) is spare
        assert has_spare_core(torch.device("meta"))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert has_spare_core(cpu)
