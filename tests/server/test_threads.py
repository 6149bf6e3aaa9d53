"""Threads that must not bring OpenMP workers with them, and a process that ends while one works."""

from __future__ import annotations

import signal
import subprocess
import sys
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


def test_a_process_ends_with_its_status_while_a_call_is_in_native_code() -> None:
    program = """
import os, signal, sys, threading, torch
from manylora.server.threads import call_in_thread

def work():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while True:
        torch.ones(100, 100) @ torch.ones(100, 100)

signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
call_in_thread(work)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")
