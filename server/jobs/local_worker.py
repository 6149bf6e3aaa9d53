"""The worker beside a server: started when there is work, gone when there is none or the server ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final
from uuid import uuid4

from manylora.adapters.errors import StoreError
from manylora.adapters.file_locks import try_lock
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tuning.states import Need

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 30.0  # without work, after which the process ends
_GRACE = 10.0  # seconds that it gets at the server's end to write a checkpoint
_LOOK_EVERY = 1.0  # seconds
_AGAIN = 0.5  # seconds
_AFTER_FAULT = 15.0  # seconds before another is started
_NEEDS = (Need.VALIDATION, Need.TRAINING)


class LocalWorker:
    """At most one process for all servers of a data directory. Event loop."""

    def __init__(self, registry: Registry, data_dir: Path, told: Mapping[str, Any]) -> None:
        """``told`` is what :func:`manylora.server.jobs.worker.main.run_worker` is told."""
        self._registry, self._told = registry, told
        self._lock = data_dir / "tuning" / "worker.lock"
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self.process: asyncio.subprocess.Process | None = None

    def start(self) -> None:
        """Begin to look for work."""
        self._task = asyncio.create_task(self._run(), name="training")

    def wake(self) -> None:
        """There may be work."""
        self._wake.set()

    async def stop(self) -> None:
        """End the process once its step is written down, and look for no more work."""
        self._ending = True
        process = self.process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _GRACE)
        while self._task is not None and not self._task.done():
            self._task.cancel()  # again: what ends at the same moment may take the first one for its own
            await asyncio.wait([self._task], timeout=_AGAIN)
        if process is not None and process.returncode is None:
            await process.wait()  # it was killed, and the event loop is to know

    async def _run(self) -> None:
        await asyncio.to_thread(self._lock.parent.mkdir, parents=True, exist_ok=True)
        leases = self._registry.tuning_leases("")
        while not self._ending:
            self._wake.clear()
            pause = _LOOK_EVERY
            try:
                if await asyncio.to_thread(leases.waiting, _NEEDS, self._told["base"]):
                    lock = try_lock(self._lock, create=True)
                    if lock is not None:
                        with lock:
                            pause = _LOOK_EVERY if await self._work() else _AFTER_FAULT
            except (OSError, StoreError) as error:
                logger.warning("training waits: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _work(self) -> bool:
        """Have a process work until it ends; whether it did as it should."""
        name = f"local-{uuid4().hex}"
        threads = str(self._told["threads"])
        process = self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "manylora.server.jobs.worker.main",
            stdin=PIPE,
            env={**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            told = {**self._told, "name": name, "parent": os.getpid()}
            with suppress(BrokenPipeError, ConnectionResetError):
                await process.communicate(json.dumps(told).encode())
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):  # it has ended by itself a moment ago
                process.kill()
            with suppress(asyncio.CancelledError):
                await process.wait()  # so that the loop does not end before it
            raise
        finally:
            self.process = None
        if process.returncode != 0:  # its jobs are free at once
            logger.warning("the training process ended with status %s", process.returncode)
            await asyncio.to_thread(self._registry.tuning_leases(name).release_dead)
        return process.returncode in {0, -signal.SIGKILL}
