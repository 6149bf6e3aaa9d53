"""The batches of this server: validated, worked on one after the other, resumed after a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from manylora.adapters.errors import StoreError
from manylora.adapters.file_locks import try_lock
from manylora.adapters.registry.batches import Batches, BatchRecord
from manylora.adapters.registry.whose import Whose
from manylora.server.batches.lines import LineFault, check_lines, read_lines
from manylora.server.batches.results import Results
from manylora.server.batches.run import Ask, Run
from manylora.server.errors import ObjectNotFound
from manylora.server.files.stored_files import StoredFiles

logger = logging.getLogger(__name__)

WINDOW = 24 * 3600  # seconds that a batch has
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_SAVED_EVERY = 1.0  # seconds, the counts of a batch that runs
_LOOK_EVERY = 5.0  # seconds, for batches that other processes of this directory took
_LOCK = "batches.lock"


class BatchQueue:
    """Takes batches and works them off. All methods run on the server's event loop."""

    def __init__(
        self,
        batches: Batches,
        files: StoredFiles,
        room: Callable[[int], int],
        max_line_bytes: int,
    ) -> None:
        """
        Args:
            batches: the registry's.
            files: that hold the requests, and take the results.
            room: how many requests may run at a time, of the number of those that do.
            max_line_bytes: of one request.
        """
        self._batches, self._files, self._room = batches, files, room
        self._max_line_bytes = max_line_bytes
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._current: _Current | None = None
        self._lock: IO[bytes] | None = None  # of this directory's batches

    def start(self, ask_for: Callable[[str | None], Ask]) -> None:
        """Begin to work, first on what was left unfinished. ``ask_for(tenant)`` asks in the tenant's name."""
        self._task = asyncio.create_task(self._work(ask_for), name="batches")
        self._wake.set()

    async def stop(self) -> None:
        """Leave the batch that runs as it is, to be resumed."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def create(
        self,
        input_file: str,
        endpoint: str,
        metadata: Mapping[str, str],
        expires_after: int | None,
        tenant: str | None = None,
    ) -> BatchRecord:
        """Take a new batch, of the tenant of that id.

        Raises:
            StoreError: it can't be recorded.
        """
        created = time.time()
        details = {
            "endpoint": endpoint,
            "metadata": dict(metadata),
            "expires_after": expires_after,
            "expires_at": created + WINDOW,
            "counts": {"total": 0, "completed": 0, "failed": 0},
        }
        record = BatchRecord(
            f"batch_{uuid4().hex}", created, "validating", input_file, details, tenant=tenant
        )
        await asyncio.to_thread(self._batches.add, record)
        self._wake.set()
        return record

    async def get(self, batch_id: str) -> BatchRecord | None:
        """The batch as it is now, or None."""
        record = await asyncio.to_thread(self._batches.get, batch_id)
        return record if record is None else self._now(record)

    async def page(self, after: str | None, limit: int, whose: Whose) -> list[BatchRecord] | None:
        """The newest batches; None where there is no batch ``after`` of theirs."""
        records = await asyncio.to_thread(lambda: self._batches.page(after=after, limit=limit, whose=whose))
        return None if records is None else [self._now(record) for record in records]

    async def cancel(self, record: BatchRecord) -> BatchRecord:
        """Send no more of its requests. Whatever runs is answered, and what was answered can be had."""
        if self._current is not None and self._current.record.id == record.id:
            self._current.cancel()
            await asyncio.to_thread(self._batches.update, self._current.record)
            return self._current.record
        record = _with(record, "cancelling", cancelling_at=time.time())
        await asyncio.to_thread(self._batches.update, record)
        self._wake.set()
        return record

    async def needs(self, file_id: str) -> str | None:
        """What reads a file, if a batch does that has not ended."""
        found = await asyncio.to_thread(lambda: self._batches.with_status(OPEN, input_file=file_id))
        return "a batch that has not ended" if found else None

    def _now(self, record: BatchRecord) -> BatchRecord:
        current = self._current
        return current.record if current is not None and current.record.id == record.id else record

    async def _work(self, ask_for: Callable[[str | None], Ask]) -> None:
        with ExitStack() as held:
            while True:
                self._wake.clear()
                try:
                    if self._lock is None:
                        # Not in a thread: a server that ends meanwhile would not have it, and it stay locked.
                        self._lock = try_lock(self._files.working_path(_LOCK), create=True)
                        if self._lock is not None:
                            held.callback(self._lock.close)
                    if self._lock is not None:  # else another process of this directory does it
                        for record in await asyncio.to_thread(self._batches.with_status, OPEN):
                            await self._work_on(record, ask_for(record.tenant))
                except (OSError, StoreError) as error:
                    logger.warning("batches wait: %s", error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _LOOK_EVERY)

    async def _work_on(self, record: BatchRecord, ask: Ask) -> None:
        self._current = current = _Current(record)
        try:
            await self._advance(current, ask)
        finally:
            self._current = None

    async def _advance(self, current: _Current, ask: Ask) -> None:
        with ExitStack() as held:
            path: Path | None = None
            if current.record.status in ("validating", "in_progress", "cancelling"):
                with suppress(ObjectNotFound):
                    local = self._files.local(current.record.input_file)
                    path = await asyncio.to_thread(held.enter_context, local)
            if current.record.status == "validating":
                await self._validate(current, path)
            if current.record.status in ("in_progress", "cancelling"):
                await self._answer(current, path, ask)
        if current.record.status in ("finalizing", "cancelling"):
            await self._finish(current)

    async def _validate(self, current: _Current, path: Path | None) -> None:
        endpoint = str(current.record.details["endpoint"])
        count, faults = await asyncio.to_thread(_checked, path, self._max_line_bytes, endpoint)
        if faults:
            errors = [fault.as_json() for fault in faults]
            current.set("failed", failed_at=time.time(), errors=errors)
        else:
            counts = {"total": count, "completed": 0, "failed": 0}
            status = "cancelling" if current.cancelled else "in_progress"
            current.set(status, in_progress_at=time.time(), counts=counts)
        await self._save(current)

    async def _answer(self, current: _Current, path: Path | None, ask: Ask) -> None:
        output, errors = (self._files.working_path(f"{current.record.id}.{kind}") for kind in ("out", "err"))
        saved = time.monotonic()
        left = float(current.record.details["expires_at"]) - time.time()
        with await asyncio.to_thread(Results, output, errors) as results:
            run = current.run = Run(ask, results, self._room)
            run.stopped = current.cancelled

            def told() -> None:
                nonlocal saved
                current.count(results)
                if time.monotonic() - saved > _SAVED_EVERY:
                    saved = time.monotonic()
                    saving = asyncio.create_task(self._tell(current))
                    current.saving.add(saving)
                    saving.add_done_callback(current.saving.discard)

            current.count(results)
            lines = iter(()) if path is None else read_lines(path, self._max_line_bytes)
            await run.all(lines, until=time.monotonic() + left, told=told)
            await asyncio.gather(*current.saving, return_exceptions=True)
            current.count(results)
        current.expired = time.time() > float(current.record.details["expires_at"])
        if not current.cancelled:
            current.set("finalizing", finalizing_at=time.time())
        await self._save(current)

    async def _finish(self, current: _Current) -> None:
        record = current.record
        found: dict[str, Any] = {}
        for kind, key in (("out", "output_file_id"), ("err", "error_file_id")):
            path = self._files.working_path(f"{record.id}.{kind}")
            file_id = f"file-{record.id.removeprefix('batch_')}-{kind}"
            if path.exists() and path.stat().st_size:
                name = f"{record.id}_{'output' if kind == 'out' else 'error'}.jsonl"
                after = record.details["expires_after"]
                await asyncio.to_thread(
                    self._files.add, path, name, "batch_output", after, file_id, tenant=record.tenant
                )
            path.unlink(missing_ok=True)
            if await asyncio.to_thread(self._files.get, file_id) is not None:
                found[key] = file_id
        if current.cancelled:
            current.set("cancelled", cancelled_at=time.time(), **found)
        elif current.expired:
            current.set("expired", expired_at=time.time(), **found)
        else:
            current.set("completed", completed_at=time.time(), **found)
        await self._save(current)

    async def _tell(self, current: _Current) -> None:
        """Save how far it is; another process may have been asked to cancel it."""
        there = await asyncio.to_thread(self._batches.get, current.record.id)
        if there is not None and there.status == "cancelling" and not current.cancelled:
            current.cancel()
        await self._save(current)

    async def _save(self, current: _Current) -> None:
        await asyncio.to_thread(self._batches.update, current.record)


class _Current:
    """The batch that is worked on."""

    def __init__(self, record: BatchRecord) -> None:
        self.record = record
        self.cancelled = record.status == "cancelling"
        self.expired = time.time() > float(record.details["expires_at"])
        self.run: Run | None = None
        self.saving: set[asyncio.Task[None]] = set()

    def set(self, status: str, **details: Any) -> None:
        self.record = _with(self.record, status, **details)

    def count(self, results: Results) -> None:
        counts = {**self.record.details["counts"], "completed": results.completed, "failed": results.failed}
        self.set(self.record.status, counts=counts)

    def cancel(self) -> None:
        self.cancelled = True
        if self.run is not None:
            self.run.stopped = True
        self.set("cancelling", cancelling_at=time.time())


def _with(record: BatchRecord, status: str, **details: Any) -> BatchRecord:
    return replace(record, status=status, details={**record.details, **details})


def _checked(path: Path | None, max_bytes: int, endpoint: str) -> tuple[int, list[LineFault]]:
    if path is None:
        return 0, [LineFault(0, "file_not_found", "the bytes of the input file are not on this server")]
    return check_lines(path, max_bytes, endpoint)
