"""Standalone models that are being written, or were, through this server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from manylora.adapters import errors
from manylora.adapters.errors import AdapterError, AdapterNotFound, ArtifactError, OutputExists
from manylora.adapters.merge.directory import check_absent, remove_leftovers
from manylora.adapters.mix import MixTerm
from manylora.server.adapter_manager import AdapterManager
from manylora.server.errors import Cancelled, ExportFailed, QueueFull, RequestError
from manylora.server.exporting.order import ExportOrder, OrderedMember
from manylora.server.residency.held_mix import HeldMix
from manylora.server.residency.revision_loader import SHOWN_DIGITS

logger = logging.getLogger(__name__)

_KEPT = 64  # exports that can be asked about
_MAX_WAITING = 8
_RETRY_SECONDS = 60.0
_GRACE_SECONDS = 10.0  # that the process gets to remove what it has half written
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ExportState(StrEnum):
    """How far an export of a merged model is."""

    WAITING = "waiting"  # for another one to end
    WRITING = "writing"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ExportWish:
    """What the result is to be like."""

    directory: str | None  # its name under the configured directory; None: made of the adapter's
    dtype: str | None  # None keeps each tensor's own
    max_shard_bytes: int
    verify: bool
    tenant: str = ""  # whose it is; its directory's name begins with it


@dataclass(eq=False)
class Export:
    """One export of a merged model. Read by anyone on the event loop."""

    model: str  # the mix with its revisions
    digest: bytes  # of the mix
    out: Path
    wish: ExportWish
    created: float = field(default_factory=time.time)  # unix seconds
    state: ExportState = ExportState.WAITING
    written: int = 0  # bytes
    nbytes: int | None = None  # in all, once that is known
    files: int | None = None
    seconds: float | None = None  # it took
    measured: dict[str, Any] | None = None
    effect_kept: float | None = None  # share of the change of weights that their rounding has left
    error: Exception | None = None


class Exports:
    """Writes one model at a time, each in a process of its own. Lives on the event loop."""

    def __init__(
        self,
        adapters: AdapterManager,
        revision_path: Callable[[str], Path],
        base_directory: Path,
        root: Path | None,
    ) -> None:
        """``revision_path`` finds a stored revision by digest; ``root`` is None where exports are off."""
        self._adapters = adapters
        self._revision_path = revision_path
        self._base_directory = base_directory
        self._root = None if root is None else root.resolve()
        self._exports: deque[Export] = deque(maxlen=_KEPT)
        self._running: dict[Export, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()

    def begin(self, terms: Sequence[MixTerm], wish: ExportWish) -> Export:
        """Begin to write the base with a mix of current or named revisions merged in.

        Raises:
            RequestError: exports are off, or the directory's name is malformed.
            OutputExists: there is something in that directory's place, or will be.
            AdapterNotFound, MixError: the mix does not exist, or is the base model.
            QueueFull: many exports wait already.
        """
        if self._root is None:
            raise RequestError(
                "this server writes no models: start it with --export-root DIR", code="export_not_allowed"
            )
        if len(self._running) > _MAX_WAITING:
            raise QueueFull(f"{len(self._running)} exports wait to be written", _RETRY_SECONDS)
        digests = self._adapters.resolver.digests(terms)
        held = self._adapters.resolver.hold(terms)
        try:
            name = _directory_name(wish.directory, held)
            out = self._root / (f"{wish.tenant}--{name}" if wish.tenant else name)
            self._check_free(out)
        except BaseException:
            held.release()
            raise
        export = Export(held.served_model, held.revisions.digest, out, wish)
        self._exports.append(export)
        self._running[export] = asyncio.create_task(self._see_through(export, digests, held))
        return export

    def find(self, terms: Sequence[MixTerm], tenant: str = "") -> Export:
        """The latest export of a mix, for that tenant; "" is for the operator.

        Raises:
            AdapterNotFound: a member does not exist, or there was no export.
        """
        held = self._adapters.resolver.hold(terms)
        held.release()
        for export in reversed(self._exports):
            if export.digest == held.revisions.digest and export.wish.tenant == tenant:
                return export
        raise AdapterNotFound(f"{held.served_model!r} was not exported by this server since it started")

    async def finished(self, export: Export) -> None:
        """Wait until an export is ready or has failed."""
        task = self._running.get(export)
        if task is not None:
            await asyncio.wait({task})

    async def cancel(self, export: Export) -> None:
        """End an export that has not ended; what it has written goes."""
        task = self._running.get(export)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def close(self) -> None:
        """End the exports that run or wait."""
        for export in list(self._running):
            await self.cancel(export)

    def _check_free(self, out: Path) -> None:
        check_absent(out)
        if any(export.out == out for export in self._running):
            raise OutputExists(f"{out} is being written: choose another directory")

    async def _see_through(
        self, export: Export, digests: Sequence[tuple[MixTerm, str]], held: HeldMix
    ) -> None:
        began = time.monotonic()
        try:
            async with self._turn:
                export.state = ExportState.WRITING
                await self._adapters.refetcher.ensure_on_disk(held)
                await self._write(export, self._order(export, digests))
            export.state = ExportState.READY
            logger.info("%s was exported to %s", export.model, export.out)
        except asyncio.CancelledError:
            export.error = Cancelled(f"the export of {export.model} was cancelled")
        except Exception as error:  # told to whoever asks
            export.error = error
            logger.warning("%s was not exported: %s", export.model, error)
        finally:
            if export.error is not None:
                export.state = ExportState.FAILED
            export.seconds = time.monotonic() - began
            held.release()
            del self._running[export]

    def _order(self, export: Export, digests: Sequence[tuple[MixTerm, str]]) -> ExportOrder:
        members = tuple(
            OrderedMember(term.name, str(self._revision_path(digest)), digest, term.weight)
            for term, digest in digests
        )
        return ExportOrder(
            base_directory=str(self._base_directory),
            base_name=self._adapters.base.name,
            members=members,
            out=str(export.out),
            dtype=export.wish.dtype,
            max_shard_bytes=export.wish.max_shard_bytes,
            verify=export.wish.verify,
        )

    async def _write(self, export: Export, order: ExportOrder) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "manylora.server.exporting.child", stdin=PIPE, stdout=PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(order.line())
            async for line in process.stdout:
                _take(export, json.loads(line))
        finally:
            status = await _end(process)
            await asyncio.to_thread(remove_leftovers, export.out)
        if export.files is None:
            raise ExportFailed(
                f"the process that exports {export.model} ended with status {status}: if it was killed for "
                "its memory, take smaller shards or leave the comparison out; the server's log may say more"
            )


def _take(export: Export, message: dict[str, Any]) -> None:
    """Note what the process of an export tells.

    Raises:
        AdapterError: it could not do it.
    """
    if "error" in message:
        kind = getattr(errors, message["error"], AdapterError)
        raise kind([message["message"]]) if kind is ArtifactError else kind(message["message"])
    if "written" in message:
        export.written, export.nbytes = message["written"], message["bytes"]
        if export.written == export.nbytes and export.wish.verify:
            export.state = ExportState.VERIFYING
    else:
        export.files, export.measured = message["files"], message["measured"]
        export.effect_kept = message["effect_kept"]


async def _end(process: Process) -> int:
    """See that the process is gone, whether or not it has said everything; its status."""
    assert process.stdin is not None
    assert process.stdout is not None
    if not process.stdout.at_eof():
        with suppress(ProcessLookupError):
            process.terminate()
    process.stdin.close()
    try:
        return await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    except TimeoutError:
        process.kill()
        return await process.wait()


def _directory_name(wanted: str | None, held: HeldMix) -> str:
    """What was asked for; else ``support-3f9a1c2e`` of a plain revision, or one made of the mix's digest."""
    plain = held.served_model.replace("@", "-").replace(":", "-")
    if wanted is None:
        return plain if _NAME.fullmatch(plain) else f"mix-{held.revisions.digest.hex()[:SHOWN_DIGITS]}"
    if not _NAME.fullmatch(wanted):
        raise RequestError(
            f"{wanted[:140]!r} can't be the directory's name: it begins with a letter or digit and goes on "
            "with these, '.', '_' and '-', at most 128 characters",
            "directory",
        )
    return wanted
