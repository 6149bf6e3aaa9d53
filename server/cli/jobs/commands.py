"""``manylora jobs``: make, follow and change the fine-tuning jobs of a running server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from manylora.server.cli.admin.session import Session, with_session
from manylora.server.cli.jobs.lines import bar, curve, estimate_line, event_text, job_line
from manylora.server.cli.output import REFUSED, fail

jobs = typer.Typer(name="jobs", no_args_is_help=True, help="Train models on a running server.")

Job = Annotated[str, typer.Argument(metavar="JOB", help="Its id: ftjob-…")]
_Path = Annotated[
    Path, typer.Argument(metavar="FILE", help="Rows, as JSON lines.", exists=True, dir_okay=False)
]


@jobs.command("create")
@with_session
def create_job(
    session: Session,
    file: _Path,
    *,
    model: Annotated[str, typer.Option(metavar="MODEL", help="The base, or an adapter to go on from.")],
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Rows to measure on.", exists=True, dir_okay=False, show_default=False
        ),
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="In the new model's name.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="supervised or dpo.")] = "supervised",
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="classification or embedding.", show_default=False),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--early-stopping-patience",
            metavar="EVALS",
            help="End after so many evaluations without a lower validation loss.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS", help="Rows answered by base and model at checkpoints.", show_default=False
        ),
    ] = None,
    sample_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Of each of those answers.", show_default=False)
    ] = None,
    grader: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON: what grades samples.", exists=True, dir_okay=False, show_default=False
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Rows a step.", show_default=False)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--learning-rate-multiplier", metavar="X", help="Of 0.0002.", show_default=False),
    ] = None,
    r: Annotated[
        int | None, typer.Option("--lora-r", metavar="RANK", help="Rank.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="SEED", help="Of all that is drawn.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
) -> None:
    """Upload rows and begin a job that trains a model on them."""
    numbers = _given(n_epochs=epochs, batch_size=batch_size, learning_rate_multiplier=rate)
    body: dict[str, Any] = {
        "model": model,
        "method": {"type": method, method: {"hyperparameters": numbers}},
        **_given(suffix=suffix, seed=seed, task=task, early_stopping_patience=patience),
        **_given(samples=samples, sample_tokens=sample_tokens, lora=_given(r=r) or None),
    }
    if grader is not None:
        body["grader"] = _json(grader)
    with session.talk() as client:
        body["training_file"] = client.jobs.upload(file)
        if validation is not None:
            body["validation_file"] = client.jobs.upload(validation)
        made = client.jobs.create(body, dry_run=dry_run)
        session.tell(made, estimate_line if dry_run else job_line)
        if watch and not dry_run:
            _follow(session, client.jobs, made["id"])


@jobs.command("ls")
@with_session
def list_jobs(
    session: Session,
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="COUNT", help="At most so many.")] = 20,
) -> None:
    """List jobs, the newest first."""
    with session.talk() as client:
        for job in islice(client.jobs.list(), limit):
            session.tell(job, job_line)


@jobs.command("watch")
@with_session
def watch_job(session: Session, job: Job) -> None:
    """Follow a job to its end, with a bar and the curve of its loss. Status 1 if it does not succeed."""
    with session.talk() as client:
        _follow(session, client.jobs, job)


@jobs.command("logs")
@with_session
def show_logs(session: Session, job: Job) -> None:
    """Print what happened to a job so far, the oldest first."""
    with session.talk() as client:
        for event in reversed(list(client.jobs.events(job))):
            session.tell(event, event_text)


@jobs.command("cancel")
@with_session
def cancel_job(session: Session, job: Job) -> None:
    """End a job; nothing of it is kept."""
    _change(session, job, "cancel")


@jobs.command("pause")
@with_session
def pause_job(session: Session, job: Job) -> None:
    """Have a job wait after its current step."""
    _change(session, job, "pause")


@jobs.command("resume")
@with_session
def resume_job(session: Session, job: Job) -> None:
    """Have a paused job go on."""
    _change(session, job, "resume")


def _change(session: Session, job: str, how: str) -> None:
    with session.talk() as client:
        session.tell(client.jobs.change(job, how), job_line)


def _follow(session: Session, client: Any, job: str) -> None:
    losses: list[float] = []
    shown = False
    for event in client.follow(job):
        if session.as_json or event["type"] != "metrics":
            if shown:
                typer.echo("")
                shown = False
            session.tell(event, event_text)
            continue
        data: Mapping[str, Any] = event["data"]
        if "train_loss" in data:
            losses.append(data["train_loss"])
        typer.echo(f"\r\033[K{bar(data)}  {curve(losses)}", nl=False)
        shown = True
    if shown:
        typer.echo("")
    ended = client.show(job)
    session.tell(ended, job_line)
    if ended["status"] != "succeeded":
        raise typer.Exit(REFUSED)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise fail(f"{path}: is not JSON: {error}") from None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
