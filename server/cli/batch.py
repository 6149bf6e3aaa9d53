"""``manylora batch``: a file of requests answered in this process, without a server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.progress_bars import progress_bars
from manylora.server.api.app import create_app
from manylora.server.api.asking import asker
from manylora.server.assembly import MAX_BATCH_LINE_BYTES, build_service
from manylora.server.batches.lines import Line, LineFault, check_lines, read_lines
from manylora.server.batches.results import Results
from manylora.server.batches.run import Run
from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings
from manylora.server.service import Service


def run_batch(source: Path, target: Path, settings: Settings) -> tuple[int, int]:
    """Answer the requests of ``source``; how many were answered and how many failed, now or before.

    ``target`` takes the answers, ``target`` with ``.errors`` behind its name what failed. What they hold
    already is not asked again.

    Raises:
        ConfigError: the file is not one of requests, or an option can't be used.
        ModelRefused, BaseModelError: the model can't be served.
        OSError: the files can't be read or written.
    """
    count, faults = check_lines(source, MAX_BATCH_LINE_BYTES, None)
    if faults:
        raise ConfigError("\n".join(f"{source}: line {fault.number} {fault.message}" for fault in faults))
    service = build_service(settings, resolve_model(settings.model, settings.data_dir, progress_bars()))
    with Results(target, target.with_name(f"{target.name}.errors")) as results:
        lines = read_lines(source, MAX_BATCH_LINE_BYTES)
        asyncio.run(_answer(service, lines, results, count))
        return results.completed, results.failed


async def _answer(service: Service, lines: Iterator[Line | LineFault], results: Results, count: int) -> None:
    app: FastAPI = create_app(service, batches=False)
    run = Run(asker(app), results, lambda _: 2 * service.limits.max_num_seqs)

    def stop() -> None:
        run.stopped = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
    with progress_bars() as bars:
        task = bars.add_task("Answering", total=count, completed=results.completed + results.failed)
        async with app.router.lifespan_context(app):
            await run.all(lines, told=lambda: bars.advance(task))
