"""A run that is stopped early stops there however often it was interrupted, and goes no further."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from manylora.adapters.training.errors import Interrupted
from manylora.adapters.training.run.train import TrainingResult, Watch
from manylora.adapters.training.trainers.callbacks import StopCallback
from tests.support.training_runs import ROWS, config, losses, run

pytestmark = pytest.mark.slow

# Few rows at a high rate: the held-out loss falls, and rises again.
OVERTRAINED: dict[str, Any] = {
    "rows": ROWS[:8], "eval_split": 0.4, "max_steps": 80, "eval_steps": 4, "save_steps": 4,
    "learning_rate": 0.02, "lr_scheduler": "constant",
}  # fmt: skip
PATIENCE = 2


def same(one: TrainingResult, other: TrainingResult) -> None:
    """Losses and weights, bit by bit."""
    for key in ("loss", "eval_loss"):
        assert losses(one, key) == losses(other, key)
    weights = [load_file(each.adapter / "adapter_model.safetensors") for each in (one, other)]
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])
    assert (one.steps, one.kept_step) == (other.steps, other.kept_step)


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    shown = Console(file=io.StringIO(), width=300)
    result = run(config(tiny_llama, root, early_stopping_patience=PATIENCE, **OVERTRAINED), console=shown)
    told = f"at step {result.steps} of 80 the held-out loss had not fallen for 2 evaluations"
    assert f"stopped early: {told}" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert told in (result.adapter / "README.md").read_text()
    assert told in (result.adapter.parent / "report.html").read_text()
    return result


def test_it_stops_after_so_many_evaluations(whole: TrainingResult) -> None:
    evals = losses(whole, "eval_loss")
    assert evals.index(min(evals)) == len(evals) - 1 - PATIENCE
    assert (whole.kept_step, whole.steps) == (4 * (len(evals) - PATIENCE), 4 * len(evals))
    (line,) = [line for line in whole.metrics if line["kind"] == "stopped"]
    assert (line["step"], line["evaluations"], line["planned_steps"]) == (whole.steps, PATIENCE, 80)


@pytest.mark.sweep
def test_an_interrupted_run_counts_on(whole: TrainingResult, tiny_llama: Path, tmp_path: Path) -> None:
    """Between the evaluations that are counted."""
    stop, settings = (
        StopCallback(),
        config(tiny_llama, tmp_path, early_stopping_patience=PATIENCE, **OVERTRAINED),
    )

    def told(line: Mapping[str, Any]) -> None:
        if line["kind"] == "eval" and line["step"] == whole.steps - 4:
            stop.ask("it is to")

    with pytest.raises(Interrupted):
        run(settings, watch=Watch(stop=stop, told=told))
    same(run(settings, resume=True), whole)


@pytest.mark.sweep
def test_one_that_was_stopped_takes_no_step_more(
    whole: TrainingResult, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when it had been stopped, with a checkpoint of its last step."""
    settings = config(tiny_llama, tmp_path, early_stopping_patience=PATIENCE, **OVERTRAINED)
    with monkeypatch.context() as patch:
        patch.setattr("manylora.adapters.training.run.train.judge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(settings)
    assert (settings.output_dir / "checkpoints" / f"checkpoint-{whole.steps}" / "complete").exists()
    same(run(settings, resume=True), whole)


@pytest.mark.sweep
def test_without_it_nothing_changes(whole: TrainingResult, tiny_llama: Path, tmp_path: Path) -> None:
    """The steps before are those of a run that is not stopped."""
    plain = run(config(tiny_llama, tmp_path, **OVERTRAINED))
    assert plain.steps == 80
    assert losses(plain)[: whole.steps] == losses(whole)
    assert losses(plain, "eval_loss")[: whole.steps // 4] == losses(whole, "eval_loss")
