"""The process that :mod:`manylora.adapters.bounded_process` starts. Run as a script; imports nothing of ours.

Standard input holds one JSON object ``{"file", "function", "limits": {"seconds", "memory"}, "argument"}``.
Standard output gets ``{"value"}``, ``{"error"}`` where the function raised, or ``{"excess"}`` where it ran
out of memory. Out of time, the process is killed by its timer, whatever it is doing.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_MAX_ERROR = 500  # characters


def main() -> None:
    """Load the module, take on the limits, call the function."""
    request = json.loads(sys.stdin.buffer.read())
    function = getattr(_module(request["file"]), request["function"])
    limits = request["limits"]
    _limit(limits["seconds"], limits["memory"])
    sys.stdout.buffer.write(json.dumps(_called(function, request["argument"], limits["memory"])).encode())


def _module(file: str) -> Any:
    spec = spec_from_file_location("bounded", file)
    assert spec is not None, "it is a file of Python"
    assert spec.loader is not None, "it is a file of Python"
    sys.modules[spec.name] = module = module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _called(function: Any, argument: Any, memory: int) -> dict[str, Any]:
    try:
        return {"value": function(argument)}
    except MemoryError:
        return {"excess": f"it takes more than {memory >> 20} MiB of memory"}
    except Exception as error:  # it works on a stranger's input: it raises anything
        return {"error": f"{type(error).__name__}: {error}"[:_MAX_ERROR]}


def _limit(seconds: float, memory: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which is to die
    signal.setitimer(signal.ITIMER_PROF, seconds)
    pages = Path("/proc/self/statm").read_text("ascii").split()[0]
    size = int(pages) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


if __name__ == "__main__":
    main()
