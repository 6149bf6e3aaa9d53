"""A system under measurement: how it is started, where it listens and how a request names adapters."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from urllib.error import URLError
from urllib.request import urlopen

from manylora.server.cli.loadgen.completion import Endpoint, Exchange, complete, greedy
from manylora.server.cli.loadgen.workload import Kind, model_string

Adapters = tuple[int, ...]
Body = Callable[[Adapters], dict[str, object]]  # the fields of a request that choose adapters

ADAPTER_KINDS: frozenset[Kind] = frozenset({"base", "distinct", "uniform", "zipf", "identical"})
ALL_KINDS: frozenset[Kind] = ADAPTER_KINDS | {"mix"}
BASE = "base"  # the name under which every system we start serves its base model


class SystemFailed(Exception):
    """A server did not start, or went away."""


def by_model(members: Adapters) -> dict[str, object]:
    """Adapters chosen by the model's name, as all servers of OpenAI's kind do; mixes in our notation."""
    return {"model": model_string([f"a{member}" for member in members], BASE)}


def by_lora_list(members: Adapters) -> dict[str, object]:
    """llama.cpp's way: every request lists its adapters, an empty list being the base."""
    return {"model": BASE, "lora": [{"id": member, "scale": 1 / len(members)} for member in members]}


@dataclass(frozen=True, slots=True)
class System:
    """``command`` starts it, with ``{port}`` filled in; without a command it runs already, at ``url``."""

    name: str
    command: tuple[str, ...] = ()
    url: str | None = None
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    body: Body = by_model
    kinds: frozenset[Kind] = ADAPTER_KINDS  # of workload, that it can serve
    start_seconds: float = 600.0


class RunningSystem:
    """A system that answers. One that we started is stopped by :meth:`stop`."""

    def __init__(self, system: System, url: str, process: subprocess.Popen[bytes] | None) -> None:
        try:
            self._endpoint = Endpoint.of(url)
        except ValueError as error:
            raise SystemFailed(f"{system.name}: {error}") from None
        self.system = system
        self.url = url
        self._process = process

    async def send(self, prompt: str, members: Adapters, output_tokens: int) -> Exchange:
        """One greedy completion of exactly ``output_tokens`` tokens."""
        body = greedy(self.system.body(members), prompt, output_tokens)
        return await complete(self._endpoint, body, timeout=900)

    def pause(self) -> None:
        """Stop its processes from using the CPU while another system is measured."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End every process of it, the patient way first."""
        self.resume()
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.signal(signal.SIGKILL)
        self._process.wait(20)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of it, if we started it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @property
    def exit_status(self) -> int | None:
        """That of the process, once it has ended."""
        return None if self._process is None else self._process.poll()

    def check_alive(self) -> None:
        """Raise :class:`SystemFailed` if the process has ended."""
        if (code := self.exit_status) is not None:
            raise SystemFailed(f"{self.system.name} ended with status {code}")


async def start(system: System, log: Path) -> RunningSystem:
    """Start the system, its output going to ``log``, and wait until it answers on its ready path.

    Raises:
        SystemFailed: it ended, or did not answer in time.
    """
    if system.url is not None:
        return RunningSystem(system, system.url, None)
    port = _free_port()
    command = [word.replace("{port}", str(port)) for word in system.command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **system.environment},
            start_new_session=True,
        )
    running = RunningSystem(system, f"http://127.0.0.1:{port}", process)
    try:
        await _wait_ready(running)
    except BaseException:
        running.stop()
        raise
    return running


async def _wait_ready(running: RunningSystem) -> None:
    deadline = monotonic() + running.system.start_seconds
    while not await asyncio.to_thread(_answers, running.url + running.system.ready_path):
        running.check_alive()
        if monotonic() > deadline:
            raise SystemFailed(f"{running.system.name} was not ready in {running.system.start_seconds:g} s")
        await asyncio.sleep(0.25)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def manylora(
    base: Path,
    adapters: Sequence[Path],
    data: Path,
    max_num_seqs: int,
    *,
    device: str = "auto",
    quantize: str | None = None,
) -> System:
    """Our own server from this checkout, all adapters registered, the base kept in ``quantize`` if given."""
    flags = [f"--adapter=a{number}={path}" for number, path in enumerate(adapters)]
    rank = max((int(path.name.rpartition("-r")[2]) for path in adapters), default=16)
    command = [sys.executable, "-m", "manylora", "serve", "--model", str(base), "--served-model-name", BASE]
    command += ["--port", "{port}", "--data-dir", str(data), "--max-num-seqs", str(max_num_seqs)]
    command += ["--device", device]
    command += ["--max-lora-rank", str(max(rank, 1)), *flags]
    if quantize is not None:
        command += ["--quantize", quantize]
    name = "manylora" if quantize is None else f"manylora-{quantize}"
    return System(name, tuple(command), ready_path="/ready", kinds=ALL_KINDS)


def parse_system(text: str) -> System:
    """``NAME=URL`` of a running OpenAI-style server, or ``NAME=COMMAND`` to start one on ``{port}``.

    Raises:
        ValueError: saying what is wrong.
    """
    name, found, rest = text.partition("=")
    if not (name and found and rest):
        raise ValueError(f"{text!r} is not NAME=URL or NAME=COMMAND")
    if rest.startswith(("http://", "https://")):
        return System(name, url=rest)
    if "{port}" not in rest:
        raise ValueError(f"{text!r}: the command must say where {{port}} goes")
    return System(name, tuple(shlex.split(rest)))
