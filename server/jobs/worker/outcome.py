"""What is told of a job's run once it is over: by what it is worse, which step is kept, how it scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manylora.adapters.registry.tuning.leases import Said
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.training.run.train import TrainingResult
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import STOPPED
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.inspection import public
from manylora.server.jobs.training_config import Place
from manylora.server.jobs.worker.heartbeat import Heartbeat


def lineage_of(job: JobRecord) -> Mapping[str, Any]:
    """What the adapter's file says of where it comes from."""
    asked = job.asked
    return {
        "method": "fine-tuning",
        "members": [],
        "job": job.id,
        "data": job.found["data_digest"],
        "config": {
            **job.found["hyperparameters"],
            "type": asked.get("task") or asked["method"],
            **asked["lora"],
        },
        "seed": asked["seed"],
    }


def hide_places(folder: JobFolder, place: Place) -> None:
    """Take out of report and card, which the job's owner gets, where things are on the machine."""
    run = Folder(folder.run)
    for path in (run.root / "report.html", run.finished / "README.md"):
        path.write_text(public(path.read_text(encoding="utf-8"), folder, place), encoding="utf-8")


def tell_outcome(job: JobRecord, heartbeat: Heartbeat, result: TrainingResult) -> None:
    """Say what a run of ``job`` has come to."""
    planned = next(
        (line["planned_steps"] for line in result.metrics if line["kind"] == STOPPED), result.steps
    )
    tokens = round(job.found["trained_tokens_in_all"] * result.steps / planned)
    heartbeat.say(trained_tokens=tokens)
    for warning in result.warnings:
        heartbeat.say(Said(warning, "warn"))
    if result.kept_step != result.steps:
        message = f"The step with the lowest validation loss is kept: {result.kept_step} of {result.steps}"
        heartbeat.say(Said(message), kept_step=result.kept_step)
    base, trained = result.baseline.base, result.baseline.adapter
    if trained:
        scores = {"base": base, "trained": trained}
        heartbeat.say(Said(_shown(base, trained), data={"scores": scores}), scores=scores)


def _shown(base: Mapping[str, float], trained: Mapping[str, float]) -> str:
    parts = [
        f"{name} {value:.3f}" + (f" (base {base[name]:.3f})" if name in base else "")
        for name, value in trained.items()
    ]
    return f"On the validation rows: {', '.join(parts)}"
