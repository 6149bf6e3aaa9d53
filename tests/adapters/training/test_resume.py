"""A run that was killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.errors import CheckpointError, Interrupted
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import read_metrics
from manylora.adapters.training.trainers.sft import SupervisedTrainer
from tests.support.training_runs import ROWS, config, run

pytestmark = pytest.mark.slow

SECONDS = 120.0
CHANGES: dict[str, Any] = {"max_steps": 12, "save_steps": 3, "eval_steps": 3, "lora_dropout": 0.2}


def curve(folder: Path) -> list[tuple[int, Any, Any, Any]]:
    """What must be the same however often a run was interrupted."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [(x["step"], x.get("loss"), x.get("eval_loss"), x.get("learning_rate")) for x in lines]


@pytest.mark.sweep
def test_kill_9_and_resume(tiny_llama: Path, tmp_path: Path) -> None:
    """Same losses, same weights, bit by bit, with dropout and half an epoch's rows left to come."""
    whole = config(tiny_llama, tmp_path, name="whole", **CHANGES)
    run(whole)
    killed = config(tiny_llama, tmp_path, name="killed", **CHANGES)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(killed))
    command = [sys.executable, "-m", "manylora", "train", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        _wait_for_step(process, killed.output_dir / "metrics.jsonl", 7)
        process.kill()
    assert not (killed.output_dir / "adapter").exists()
    before = curve(killed.output_dir)
    result = run(killed, resume=True)
    assert before[: len(before) - 1] == curve(killed.output_dir)[: len(before) - 1]
    assert curve(killed.output_dir) == curve(whole.output_dir)
    one, other = (load_file(c.output_dir / "adapter" / "adapter_model.safetensors") for c in (whole, killed))
    assert one.keys() == other.keys()
    assert all(bool((one[key] == other[key]).all()) for key in one)
    assert result.steps == 12


def _wait_for_step(process: subprocess.Popen[bytes], metrics: Path, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in read_metrics(metrics)):
            return
        os.sched_yield()
    raise AssertionError("the run ended before it could be killed")


@pytest.mark.parametrize("init", ["default", "olora"])
def test_a_signal_leaves_a_checkpoint(
    init: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_llama, tmp_path, init=init, max_steps=8, save_steps=100, eval_split=0)
    original = SupervisedTrainer.compute_loss

    def interrupt(self: Any, model: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == 4 and not settings.output_dir.joinpath("sent").exists():
            settings.output_dir.joinpath("sent").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, model, *args, **options)

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped by SIGINT at step 5 of 8; --resume goes on"):
        run(settings)
    assert signal.getsignal(signal.SIGINT) is handler
    result = run(settings, resume=True)
    assert [line["step"] for line in result.metrics] == list(range(1, 9))
    assert result.gate.difference < result.gate.allowed


def test_killed_after_the_last_step(tiny_llama: Path, tmp_path: Path) -> None:
    """Before the adapter appeared: no step is taken twice, though the rate is as high as ever."""
    settings = config(tiny_llama, tmp_path, max_steps=4, save_steps=2, lr_scheduler="constant", eval_split=0)
    first = run(settings)
    weights = load_file(first.adapter / "adapter_model.safetensors")
    shutil.rmtree(first.adapter)
    again = run(settings, resume=True)
    assert again.metrics == first.metrics
    after = load_file(again.adapter / "adapter_model.safetensors")
    assert all(bool((weights[key] == after[key]).all()) for key in weights)


def test_only_the_same_run_is_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, tmp_path, max_steps=2, save_steps=1, eval_split=0)
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        run(settings, resume=True)
    run(settings)
    other = settings.model_copy(update={"learning_rate": 1e-4, "lora_r": 2, "logging_steps": 7})
    with pytest.raises(
        CheckpointError, match="another learning_rate, lora_r; resuming would not continue it"
    ):
        run(other, resume=True)
    config(tiny_llama, tmp_path, ROWS[1:])  # writes other data to the same file
    with pytest.raises(CheckpointError, match="another data; resuming"):
        run(settings, resume=True)


def test_a_half_written_checkpoint_is_never_used(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for step, is_complete in ((9, True), (10, True), (100, False)):
        directory = folder.checkpoints / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        (directory / "trainer_state.json").write_text(json.dumps({}))
        if is_complete:
            (directory / "complete").touch()
    assert folder.last_checkpoint() == folder.checkpoints / "checkpoint-10"
