"""Fine-tuning as a server offers it: its jobs, the worker beside it, and publishing what was trained."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.tuning.records import JobRecord, RequestKey
from manylora.adapters.registry.tuning.states import ENDED
from manylora.server.adapter_manager import AdapterManager
from manylora.server.cores import usable_cores
from manylora.server.files.stored_files import StoredFiles
from manylora.server.jobs.folder import JOB_ID, JobFolder
from manylora.server.jobs.local_worker import IDLE_SECONDS, LocalWorker
from manylora.server.jobs.publication import AskFor, Publications
from manylora.server.options.settings import Settings
from manylora.server.tenants.directory import TenantDirectory

logger = logging.getLogger(__name__)

Mode = Literal["off", "local", "external"]
NEEDED: Final = ("peft", "trl", "datasets", "matplotlib")  # of the extra ``train``
_LOOK_EVERY = 0.5  # seconds, for what is to be published
_MOST_DOUBLED = 6  # which is 32 seconds
_CLEAN_EVERY = 60.0  # seconds


class Tuning:
    """The jobs of a registry, and who works on them here. Event loop."""

    def __init__(
        self,
        mode: Mode,
        settings: Settings,
        model_dir: Path,
        *,
        adapters: AdapterManager,
        files: StoredFiles,
        tenants: TenantDirectory,
        device: str,
    ) -> None:
        """
        Args:
            mode: who trains: nobody, a process of this server, or workers elsewhere.
            settings: the server's.
            model_dir: of the base.
            adapters: where models are published.
            files: what clients uploaded.
            tenants: whose adapters have bounds.
            device: that the base is on.
        """
        self.mode, self.model_dir, self.data_dir = mode, model_dir, settings.data_dir
        self.base = adapters.base.fingerprint
        self.told = worker_told(settings, model_dir, self.base, device)
        registry = adapters.registry
        self.jobs, self.events = registry.tuning, registry.tuning_events

        def room(tenant_id: str) -> int | None:
            tenant = tenants.by_id(tenant_id)
            return None if tenant is None else tenant.settings.limits.adapter_bytes

        self._leases = registry.tuning_leases(f"server-{uuid4().hex}")
        self.publications = Publications(
            self._leases, adapters, files, self.data_dir, room, base_name=settings.model_name
        )
        self.worker = LocalWorker(registry, self.data_dir, self.told) if mode == "local" else None
        self.estimates = asyncio.Semaphore(1)  # of jobs that are only asked about
        self._task: asyncio.Task[None] | None = None

    def start(self, ask_for: AskFor) -> None:
        """Begin to publish, and to have jobs trained where that is done here.

        ``ask_for`` asks the judges of jobs' graders.
        """
        if self.mode == "off":
            return
        self._task = asyncio.create_task(self._publish(ask_for), name="publishing jobs")
        if self.worker is not None:
            self.worker.start()

    async def stop(self) -> None:
        """Leave what is unfinished to be taken up later."""
        if self.worker is not None:
            await self.worker.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def folder(self, job_id: str) -> JobFolder:
        """The directory of a job."""
        return JobFolder.of(self.data_dir, job_id)

    async def add(self, record: JobRecord, key: RequestKey | None) -> JobRecord:
        """Take a new job, whose files are in its directory; or find the one that came with ``key`` before.

        Raises:
            StoreError: it can't be recorded.
            KeyReused: that one was asked for in other words.
        """
        made = await asyncio.to_thread(self.jobs.add, record, key)
        if self.worker is not None:
            self.worker.wake()
        return made

    async def needs(self, file_id: str) -> str | None:
        """What reads a file, if a job does that has not ended."""
        reads = await asyncio.to_thread(self.jobs.reads, file_id)
        return "a fine-tuning job that has not ended" if reads else None

    async def _publish(self, ask_for: AskFor) -> None:
        cleaned, faults = -math.inf, 0  # one after the other
        while True:
            try:
                await self.publications.work(ask_for)
                if time.monotonic() - cleaned > _CLEAN_EVERY:
                    await asyncio.to_thread(self.clean_up)
                    cleaned = time.monotonic()
                faults = 0
            except (OSError, StoreError) as error:
                logger.warning("fine-tuned models wait to be published: %s", error)
                faults += 1
            except Exception:  # it must not keep later jobs waiting for ever
                logger.exception("publishing fine-tuned models failed")
                faults += 1
            await asyncio.sleep(pause_after(faults))

    def clean_up(self) -> None:
        """End the jobs of tenants that are gone, and remove the directories of what nobody works on."""
        self.jobs.cancel_of_nobody()
        root = self.data_dir / "tuning"
        for path in root.iterdir() if root.is_dir() else ():
            if JOB_ID.fullmatch(path.name):
                job = self.jobs.get(path.name)
                if job is not None and job.status in ENDED and job.worker is None:
                    with suppress(OSError):
                        self.folder(path.name).remove()


def pause_after(faults: int) -> float:
    """Seconds to the next look for what is to be published, after so many faults one upon the other."""
    return _LOOK_EVERY * 2.0 ** min(faults, _MOST_DOUBLED)


def worker_told(settings: Settings, model_dir: Path, base: str, device: str) -> Mapping[str, Any]:
    """What the process that trains beside a server is told."""
    return {
        "registry_url": settings.registry,
        "data_dir": str(settings.data_dir.resolve()),
        "model": str(model_dir),
        "base": base,
        "threads": max(1, math.floor(settings.training_share * usable_cores())),
        "per_tenant": settings.tenant_jobs,
        "at_once": settings.training_jobs,
        "idle_seconds": IDLE_SECONDS,
        "dtype": "fp32" if settings.dtype == "fp32" else "auto",
        "device": "cpu" if device == "cpu" else "cuda",
        "log_level": settings.log_level,
    }


def mode_of(asked: Literal["auto", "off", "local", "external"], device: str) -> Mode:
    """What "auto" stands for: on a CPU ``local`` where the trainer is installed, else ``off``.

    A GPU's memory is the server's own: training beside it has to be asked for.
    """
    if asked != "auto":
        return asked
    return "local" if device == "cpu" and is_installed() else "off"


def is_installed() -> bool:
    """Whether the libraries of the trainer are there."""
    return all(find_spec(name) is not None for name in NEEDED)
