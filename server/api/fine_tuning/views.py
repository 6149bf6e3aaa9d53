"""Jobs, events and checkpoints as OpenAI shows them."""

from __future__ import annotations

from typing import Any

from manylora.adapters.registry.tuning.records import CheckpointRecord, EventRecord, JobRecord
from manylora.adapters.registry.tuning.states import ENDED, JobState
from manylora.server.jobs.hyperparameters import AUTO

_VALID = ("valid_loss", "valid_mean_token_accuracy", "valid_accuracy")
_NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


def job_json(job: JobRecord) -> dict[str, Any]:
    """A job: OpenAI's fields, what else it was asked for, ``progress``, ``scores`` and ``grades``."""
    asked, found = job.asked, job.found
    numbers = found.get("hyperparameters") or {
        name: asked["hyperparameters"].get(name, AUTO)
        for name in (*_NUMBERS, *(("beta",) if asked["method"] == "dpo" else ()))
    }
    ended, running = job.status in ENDED, job.status is JobState.RUNNING
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "error": found.get("error"),
        "fine_tuned_model": found.get("fine_tuned_model") if job.status is JobState.SUCCEEDED else None,
        "finished_at": _seconds(found.get("finished_at")),
        "hyperparameters": {name: numbers[name] for name in _NUMBERS},
        "model": asked["model"],
        "organization_id": asked["organization"],
        "result_files": found.get("result_files", []) if ended else [],
        "seed": asked["seed"],
        "status": job.status,
        "trained_tokens": found.get("trained_tokens"),
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "estimated_finish": _seconds(found.get("estimated_finish") if running else None),
        "integrations": [],
        "metadata": asked["metadata"],
        "method": {"type": asked["method"], asked["method"]: {"hyperparameters": numbers}},
        "user_provided_suffix": asked["suffix"],
        "lora": asked["lora"],
        "task": asked.get("task"),
        "early_stopping_patience": asked.get("early_stopping_patience"),
        "samples": asked.get("samples", 0),
        "sample_tokens": asked.get("sample_tokens", 64),
        "grader": asked.get("grader"),
        "progress": found.get("progress"),
        "scores": found.get("scores"),
        "grades": found.get("grades"),
    }


def event_json(event: EventRecord) -> dict[str, Any]:
    """Something that happened to a job."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created),
        "level": event.level,
        "message": event.message,
        "type": event.kind,
        "data": dict(event.data),
    }


def checkpoint_json(checkpoint: CheckpointRecord) -> dict[str, Any]:
    """A step of a job that can be asked for."""
    measured = dict(checkpoint.metrics)
    valid = {f"full_{name}": measured[name] for name in _VALID if name in measured}
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created),
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job,
        "step_number": checkpoint.step,
        "metrics": {**measured, **valid},
    }


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
