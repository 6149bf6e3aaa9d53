"""``manylora worker``: trains the jobs of servers that share a registry, on this or another machine."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from manylora.adapters.errors import AdapterError
from manylora.server.cli.output import fail
from manylora.server.cli.train import need_libraries
from manylora.server.cores import usable_cores
from manylora.server.errors import ServerError


def worker(  # noqa: PLR0917 - typer makes a flag of each
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="The base that the servers serve.")
    ] = "smollm2-135m",
    registry_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="MANYLORA_REGISTRY_URL",
            help="The registry that the servers share. Default: in --data-dir.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="MANYLORA_DATA_DIR",
            help="The data directory that the servers share.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Default: all cores.", show_default=False)
    ] = None,
    training_jobs: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            envvar="MANYLORA_TRAINING_JOBS",
            help="Jobs that train at once, on one copy of the base.",
        ),
    ] = 2,
    jobs_per_tenant: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="One tenant's in training at once.", show_default=False),
    ] = None,
    idle_seconds: Annotated[
        float | None,
        typer.Option(min=1, metavar="S", help="End after so long without work.", show_default=False),
    ] = None,
) -> None:
    """Train jobs of servers that run with --training external. SIGTERM ends it after the current step."""
    try:
        need_libraries()
        limits = {"per_tenant": jobs_per_tenant, "at_once": training_jobs, "idle_seconds": idle_seconds}
        _run(model, registry_url, data_dir, threads, **limits)
    except (ServerError, AdapterError) as error:
        raise fail(error) from error


def _run(
    model: str, registry_url: str | None, data_dir: Path | None, threads: int | None, **options: Any
) -> None:
    import logging  # noqa: PLC0415

    from manylora.adapters.base_models.catalog import resolve_model  # noqa: PLC0415
    from manylora.adapters.base_models.stored import StoredModel, fingerprint  # noqa: PLC0415  (brings torch)
    from manylora.server.jobs.worker.main import run_worker  # noqa: PLC0415
    from manylora.server.options.loading import load_settings  # noqa: PLC0415

    flags = {"model": model, "registry_url": registry_url, "data_dir": data_dir}
    settings = load_settings({key: value for key, value in flags.items() if value is not None})
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(message)s")
    directory = resolve_model(settings.model, settings.data_dir)
    run_worker(
        {
            "registry_url": settings.registry,
            "data_dir": str(settings.data_dir.resolve()),
            "model": str(directory),
            "base": fingerprint(StoredModel(directory)),
            "name": f"{socket.gethostname()[:20]}-{os.getpid()}-{uuid.uuid4().hex[:12]}",
            "threads": threads or usable_cores(),
            "dtype": "fp32" if settings.dtype == "fp32" else "auto",
            "device": "auto",
            "parent": None,
            **options,
        }
    )
