"""A stage: servers that are made to fail, as their users see it.

python -m bench.gpu_check.faults BASE DEVICE
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch

from bench.gpu_check.results import Part, tell
from bench.systems import BASE, RunningSystem, System, SystemFailed, start

_LOST = 70  # the exit status of a server whose device is lost
_PATIENCE = 60.0  # seconds
_SHOWN = 1500  # characters of a log
_SPARE = 24 << 20  # bytes that a server short of memory has left: less than its longest step takes

# A server that does what a file in its data directory is named after, before its next step.
_SERVER = """
import torch
from pathlib import Path
from manylora.server.engine.engine import Engine
advance, orders = Engine.advance, Path({orders!r})
def faulty(engine):
    for order in (index_out_of_range, little_memory, all_memory):
        path = orders / order.__name__
        if path.exists():
            path.unlink()
            order()
    return advance(engine)
Engine.advance = faulty
def index_out_of_range():
    print(torch.arange(4, device="cuda")[torch.tensor([1 << 20], device="cuda")].shape)
def little_memory():
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + {spare}
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
def all_memory():
    torch.cuda.set_per_process_memory_fraction(1.0)
from manylora.server.cli.main import main
main()
"""


@dataclass(frozen=True)
class Asked:
    """What a completion was answered."""

    status: int
    text: str
    error: str | None


def system(base: Path, data: Path, device: str) -> System:
    """A server of ``base`` with small caches that takes orders in ``data``."""
    data.mkdir()
    code = _SERVER.replace("{orders!r}", repr(str(data))).replace("{spare}", str(_SPARE))
    command = [sys.executable, "-c", code, "serve", "--model", str(base), "--served-model-name", BASE]
    command += ["--port", "{port}", "--data-dir", str(data), "--device", device, "--no-prefix-cache"]
    command += ["--kv-cache-memory", "512MiB", "--adapter-memory", "64MiB", "--merge-memory", "64MiB"]
    return System("manylora", tuple(command), ready_path="/ready")


def started(made: System, log: Path) -> RunningSystem:
    """It, once it is ready.

    Raises:
        SystemFailed: it is not, with the end of its log.
    """
    try:
        return asyncio.run(start(made, log))
    except SystemFailed as error:
        raise SystemFailed(f"{error}: {log.read_text(errors='replace')[-_SHOWN:]}") from None


def ask(server: RunningSystem, prompt: str, tokens: int) -> Asked:
    """A greedy completion."""
    body = {"model": BASE, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urlopen(request, timeout=_PATIENCE) as answer:
            found: dict[str, Any] = json.load(answer)
            return Asked(200, found["choices"][0]["text"], None)
    except HTTPError as error:
        return Asked(error.code, "", error.read().decode()[:200])
    except (URLError, OSError) as error:
        return Asked(0, "", str(error))


def metric(server: RunningSystem, name: str) -> float:
    """One number of the server's metrics."""
    with urlopen(f"{server.url}/metrics", timeout=_PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


def lost_device(base: Path, device: str, here: Path) -> Part:
    """An index out of range leaves an error in the device that never goes away."""
    data, log = here / "data", here / "log"
    server = started(system(base, data, device), log)
    try:
        before = ask(server, "Hello", 8)
        (data / "index_out_of_range").touch()
        hit = ask(server, "Hello", 8)
        health, code = _end_of(server)
    finally:
        server.stop()
    ok = before.status == 200 and hit.status != 200 and health in {503, 0} and code == _LOST
    note = f"The request was answered {hit.status} ({hit.error}); /health {health}; it ended with {code}."
    said = "" if ok else f" Its log ends: {log.read_text(errors='replace')[-_SHOWN:]}"
    return Part("faults", "an error that stays in the device", ok, note + said)


def _end_of(server: RunningSystem) -> tuple[int, int | None]:
    """What /health said last, and the exit status."""
    health, deadline = 0, monotonic() + _PATIENCE
    while server.exit_status is None and monotonic() < deadline:
        with suppress(URLError, OSError):
            health = _status(f"{server.url}/health")
        sleep(0.02)
    return health, server.exit_status


def _status(url: str) -> int:
    try:
        with urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def short_of_memory(base: Path, device: str, here: Path) -> Part:
    """A long prompt meets a device with nearly nothing left; others are answered as before."""
    prompt, data = "a long prompt " * 220, here / "data"
    server = started(system(base, data, device), here / "log")
    try:
        before, short = ask(server, prompt, 8), ask(server, "Hello", 8)
        (data / "little_memory").touch()
        hit, beside = ask(server, prompt, 8), ask(server, "Hello", 8)
        (data / "all_memory").touch()
        after, count = ask(server, prompt, 8), metric(server, "manylora_steps_out_of_memory_total")
    finally:
        server.stop()
    served = hit.status == 200 or "memory" in (hit.error or "")
    ok = count > 0 and served and beside == short and before.status == after.status == 200
    note = (
        f"{count:.0f} steps ran out of memory; the long request was answered {hit.status} {hit.error or ''}, "
        f"a short one behind it {'as before' if beside == short else 'OTHERWISE'}, the long one later "
        f"{after.status}."
    )
    return Part("faults", "memory that runs out in a step", ok, note)


def healthy(base: Path, device: str, here: Path) -> Part:
    """An answer, and nothing that fails: of a CPU, which neither gets lost nor is short of memory alone."""
    server = started(system(base, here / "data", device), here / "log")
    try:
        answered = ask(server, "Hello", 4)
    finally:
        server.stop()
    return Part("faults", "a server without faults", answered.status == 200, answered.error or "")


def main(base: Path, device: str) -> None:
    """Both faults of a GPU at once, in servers of their own."""
    kinds = (lost_device, short_of_memory) if torch.device(device).type == "cuda" else (healthy,)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        places = [Path(scratch) / kind.__name__ for kind in kinds]
        for place in places:
            place.mkdir()
        running = [pool.submit(kind, base, device, here) for kind, here in zip(kinds, places, strict=True)]
        for part in as_completed(running):
            tell(part.result())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
