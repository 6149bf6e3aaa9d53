"""What happens at the steps of a job's run: events, the time left, and adapters of the last epochs."""

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from manylora.adapters.registry.tuning.leases import Said
from manylora.adapters.training.run.export import read_initial, write_artifact, write_companions
from manylora.adapters.training.session.metrics_log import STOPPED, stopped_text
from manylora.adapters.training.session.session import Session
from manylora.adapters.training.trainers.late_epochs import LATE_EPOCHS, ends_late_epoch
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.results import measures
from manylora.server.jobs.worker.heartbeat import Heartbeat


class Progress(TrainerCallback):  # type: ignore[misc]
    """Tells of every line of the run's metrics.jsonl."""

    def __init__(self, heartbeat: Heartbeat, trained_tokens: int) -> None:
        """``trained_tokens``: that the whole run comes to."""
        self._heartbeat, self._tokens = heartbeat, trained_tokens
        self._began, self._first, self._total = time.monotonic(), 0, 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first, self._total = time.monotonic(), state.global_step, state.max_steps

    def line(self, line: Mapping[str, Any]) -> None:
        """What was measured at a step."""
        if line["kind"] == STOPPED:
            self._heartbeat.say(Said(f"The training is stopped early: {stopped_text(line)}", data=dict(line)))
        if line["kind"] == "sample":
            self._heartbeat.say(_sample(line))
        step, total, found = line["step"], self._total, measures(line)
        shown = [
            f"{kind} loss={found[key]:.4f}"
            for kind, key in (("training", "train_loss"), ("validation", "valid_loss"))
            if key in found
        ]
        if line["kind"] not in ("train", "eval") or not shown:
            return
        measured = {"step": step, "total_steps": total, **found}
        each = (time.monotonic() - self._began) / max(1, step - self._first)
        self._heartbeat.say(
            Said(f"Step {step}/{total}: {', '.join(shown)}", metrics=measured),
            progress=measured,
            trained_tokens=round(self._tokens * step / max(1, total)),
            estimated_finish=time.time() + each * (total - step),
        )


def _sample(line: Mapping[str, Any]) -> Said:
    told = {key: line[key] for key in ("step", "line", "prompt", "expected", "base") if key in line}
    where = "of the result" if line.get("published") else f"at step {line['step']}"
    data = {**told, "trained": line["adapter"], "published": bool(line.get("published"))}
    return Said(f"Sample {where}", sample=data)


class ExportCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps the adapter at the end of each of the last epochs, as it would be published."""

    def __init__(self, folder: JobFolder, session: Session, heartbeat: Heartbeat) -> None:
        self._folder, self._session, self._heartbeat = folder, session, heartbeat

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        stops_early = self._session.config.early_stopping_patience is not None
        if not ends_late_epoch(state, stops_early=stops_early):
            return
        directory = self._folder.export(state.global_step)
        partial = directory.with_name(f".{directory.name}")
        for old in (partial, directory):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        session = self._session
        initial = read_initial(session.folder.initial) if session.config.converted else None
        write_artifact(model, session, partial, initial=initial)
        write_companions(model, session, partial)
        partial.rename(directory)
        for step in self._folder.exported()[:-LATE_EPOCHS]:
            shutil.rmtree(self._folder.export(step))
        self._heartbeat.say(Said(f"Checkpoint created at step {state.global_step}"))
