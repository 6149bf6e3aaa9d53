"""What a job would take, found out by a process of its own that ends when it is done."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE
from typing import Any, Final

from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.server.api.fine_tuning.creating import bring_files
from manylora.server.errors import QueueFull, RequestError
from manylora.server.jobs.tuning import is_installed
from manylora.server.service import Service

SECONDS: Final = 120.0
_MAX_TOLD: Final = 50  # faults
_AT_ONCE = 1


async def estimate_of(service: Service, job: JobRecord, files: list[FileRecord]) -> dict[str, Any]:
    """Rows, tokens, steps, memory and seconds of a job.

    Raises:
        RequestError: its files can't be trained on; names the first fault. Or it takes too long to say.
        QueueFull: another is being estimated.
    """
    if not is_installed():
        raise RequestError(
            "This server can't estimate jobs: the extra 'train' is not installed", "dry_run", "training_off"
        )
    limit = service.tuning.estimates
    if limit.locked():
        raise QueueFull("Another job is being estimated", 5.0)
    async with limit:
        folder = service.tuning.folder(job.id)
        try:
            await bring_files(service, files, folder)
            told = await _ask(service, {**service.tuning.told, "job": job.id, "asked": dict(job.asked)})
        finally:
            await asyncio.to_thread(folder.remove)
    if told["faults"]:
        raise _refused(told["faults"])
    return {"object": "fine_tuning.job.estimate", "model": job.asked["model"], **told["estimate"]}


def _refused(faults: Sequence[Mapping[str, Any]]) -> RequestError:
    """All faults, a line each; those of the file that the first is not in are named by it."""
    first = faults[0]
    lines = []
    for fault in faults[:_MAX_TOLD]:
        where = "" if fault["param"] == first["param"] else f"{fault['param']}: "
        lines.append(where + (f"line {fault['line']}: " if fault["line"] else "") + fault["message"])
    if len(faults) > _MAX_TOLD:
        lines.append(f"and {len(faults) - _MAX_TOLD} more")
    return RequestError("\n".join(lines), first["param"], first["code"])


async def _ask(service: Service, told: Mapping[str, Any]) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "manylora.server.jobs.worker.dry_run",
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL if service.config.log_level != "debug" else None,
        env={**os.environ, "OMP_NUM_THREADS": str(told["threads"])},
    )
    try:
        answer, _ = await asyncio.wait_for(process.communicate(json.dumps(told).encode()), SECONDS)
    except TimeoutError:
        raise RequestError("The files are too large to say in time what they would take", "dry_run") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if process.returncode != 0:
        raise RequestError("What the job would take could not be found out", "dry_run")
    return json.loads(answer)
