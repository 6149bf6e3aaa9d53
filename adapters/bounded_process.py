"""Runs one function on untrusted input in a process of its own, with limits that the kernel holds.

What a stranger's file makes a library do (a regular expression that backtracks for ever, a table that fills
the memory) then costs its own call and nothing else: the interpreter of this process stays free, and a
process that exceeds a limit is killed. The function takes one JSON value and returns one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("bounded_child.py")
_START_SECONDS = 30.0  # to start the interpreter and import the module on a busy machine
_PATIENCE = 5.0  # times the allowed CPU time that is waited for: the machine may be busy
_KEPT_VARIABLES = ("PATH", "LANG", "TZ", "HOME", "LD_LIBRARY_PATH")


class OutOfBounds(Exception):
    """The call took more time or memory than it may, or ended its process; ``str()`` is a clause."""


class ChildFailed(Exception):
    """The function raised; ``str()`` is the type and the message of its exception."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one call may take."""

    seconds: float  # of CPU time, once the module is imported
    memory: int = 256 << 20  # bytes beside what the process takes once the module is imported
    max_answer: int = 16 << 20  # bytes of the answer as JSON


def run_bounded(module: str, function: str, argument: Any, bounds: Bounds) -> Any:
    """The value that ``function`` of ``module`` returns for ``argument``, both JSON. Blocks.

    The module is loaded from its file alone, without its packages: it may import the standard library and
    what is installed, but nothing relative. It can open no file, write none and start no thread or process.

    Raises:
        OutOfBounds: it took more than ``bounds`` allow, crashed, or the system has no room for a process.
        ChildFailed: the function raised an exception.
    """
    spec = find_spec(module)
    assert spec is not None, f"there is no module {module}"
    assert spec.origin is not None, f"{module} is not a file"
    limits = {"seconds": bounds.seconds, "memory": bounds.memory}
    request = json.dumps({"file": spec.origin, "function": function, "limits": limits, "argument": argument})
    answer = _answer(request.encode(), bounds)
    try:
        result = json.loads(answer)
    except ValueError:  # it was killed before or while it wrote
        raise OutOfBounds(_excess(bounds)) from None
    if "error" in result:
        raise ChildFailed(result["error"])
    if "excess" in result:
        raise OutOfBounds(result["excess"])
    return result["value"]


def _answer(request: bytes, bounds: Bounds) -> bytes:
    """What the child writes; cut off where it is killed."""
    environment = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        raise OutOfBounds(f"a process for it can't be started: {error.strerror or error}") from None
    with child:
        try:
            answer, _ = child.communicate(request, _START_SECONDS + _PATIENCE * bounds.seconds)
        except subprocess.TimeoutExpired:
            raise OutOfBounds(_excess(bounds)) from None
        finally:
            child.kill()  # harmless where it has ended
    if len(answer) > bounds.max_answer:
        raise OutOfBounds(f"it answers with more than {bounds.max_answer:,} bytes")
    return answer


def _excess(bounds: Bounds) -> str:
    return f"it takes more than {bounds.seconds:g} seconds of CPU time or {bounds.memory >> 20} MiB of memory"
