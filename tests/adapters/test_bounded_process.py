"""Work on untrusted input in a process of its own: the answer comes back, and limits hold."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

import pytest

from manylora.adapters.bounded_process import Bounds, ChildFailed, OutOfBounds, run_bounded

BOUNDS = Bounds(seconds=1.0, memory=64 << 20, max_answer=1 << 20)
WORK = """
import os, socket, threading, time
from dataclasses import dataclass

@dataclass
class Doubled:
    value: object

def double(value):
    return Doubled(value * 2).value

def fail(value):
    raise LookupError("no " + value)

def spin(value):
    while True: pass

def fill(value):
    return len([bytes(1 << 20) for _ in range(value)])

def long(value):
    return "x" * value

def die(value):
    os._exit(value)

def print_first(value):
    print(value)
    return value

def read(value):
    return open(value).read()

def write(value):
    with open(value, "w") as file:
        file.write("x")

def fork(value):
    return os.fork()

def environment(value):
    return sorted(os.environ)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with functions to call."""
    (tmp_path / "bounded_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bounded_work", raising=False)
    return "bounded_work"


@pytest.mark.parametrize("value", [2, 1.5, "ä\ud800\n", [1, None, {"a": True}], "x" * 300_000])
def test_a_value_goes_in_and_out(work: str, value: object) -> None:
    expected = value * 2  # type: ignore[operator]
    assert run_bounded(work, "double", value, BOUNDS) == expected


def test_what_the_function_raises_is_told(work: str) -> None:
    with pytest.raises(ChildFailed, match="LookupError: no luck"):
        run_bounded(work, "fail", "luck", BOUNDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        ("spin", None, "1 seconds of CPU time"),
        ("fill", 4096, "64 MiB of memory"),
        ("long", 2 << 20, "more than 1,048,576 bytes"),
        ("die", 3, "CPU time or"),
        ("print_first", "noise", "CPU time or"),
    ],
)
def test_limits(work: str, function: str, argument: object, reason: str) -> None:
    started = monotonic()
    with pytest.raises(OutOfBounds, match=reason):
        run_bounded(work, function, argument, BOUNDS)
    assert monotonic() - started < 30


@pytest.mark.parametrize("function", ["read", "write"])
def test_no_file_can_be_opened(work: str, function: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(ChildFailed, match="OSError"):
        run_bounded(work, function, str(tmp_path / "secret"), BOUNDS)


def test_nothing_of_the_environment_is_handed_on(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_API_KEY", "secret")
    assert "MANYLORA_API_KEY" not in run_bounded(work, "environment", None, BOUNDS)


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OutOfBounds, match="can't be started"):
        run_bounded("json", "dumps", 1, BOUNDS)
