"""Fine-tuning jobs of a running server, as OpenAI's client makes them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import openai

from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.adapters.training.session.folder import Folder
from tests.support.running_server import Running
from tests.support.training_data import chat

PATIENCE = 300.0  # seconds, of which most go to starting a process and importing the trainer
ENDED = ("succeeded", "failed", "cancelled")
ROWS = [chat(f"say {n}", f"{n}!") for n in range(24)]
FEW = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 50}


def packed(rows: Sequence[Any]) -> bytes:
    """Rows as JSON Lines."""
    return b"".join((json.dumps(row) if not isinstance(row, str) else row).encode() + b"\n" for row in rows)


def upload(client: openai.OpenAI, rows: Sequence[Any] = ROWS) -> str:
    """The id of a new file of rows."""
    return client.files.create(file=("rows.jsonl", packed(rows)), purpose="fine-tune").id


def begin(client: openai.OpenAI, rows: Sequence[Any] = ROWS, **fields: Any) -> Any:
    """A new job on rows, with few steps unless it is told otherwise; ``extra``: beyond OpenAI's fields."""
    extra = {"lora": {"r": 4, **fields.pop("lora", {})}, **fields.pop("extra", {})}
    default = {"model": "tiny", "training_file": upload(client, rows), "seed": 1, "hyperparameters": FEW}
    return client.fine_tuning.jobs.create(**{**default, **fields}, extra_body=extra)


def as_trained(
    running: Running, job: str, adapter: Path, checkpoint: Path, lines: Sequence[Mapping[str, Any]]
) -> None:
    """Do as a worker that has trained ``job``: with adapters that are there, and lines of metrics.jsonl.

    The checkpoint is of step 3.
    """
    tuning = running.service.tuning
    folder = tuning.folder(job)
    shutil.copytree(adapter, Folder(folder.run).finished)
    shutil.copytree(checkpoint, folder.export(3))
    Folder(folder.run).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    worker = running.service.adapters.registry.tuning_leases("a worker")
    assert worker.take([Need.VALIDATION], tuning.base) is not None
    worker.move(job, JobState.QUEUED, needs=Need.TRAINING)
    assert worker.take([Need.TRAINING], tuning.base) is not None
    worker.move(job, JobState.RUNNING)
    worker.move(job, JobState.RUNNING, needs=Need.PUBLICATION)


def when(client: openai.OpenAI, job: str, reached: Callable[[Any], object]) -> Any:
    """The job once something is true of it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = client.fine_tuning.jobs.retrieve(job)
        if reached(found):
            return found
        assert found.status not in ENDED, found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def ended(client: openai.OpenAI, job: Any) -> Any:
    """The job once it has ended."""
    return when(client, job.id, lambda found: found.status in ENDED)


def step_of(job: Any) -> int:
    """How many steps a job has taken."""
    return int((job.progress or {}).get("step", 0))
