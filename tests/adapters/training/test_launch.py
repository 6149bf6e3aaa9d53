"""Two processes train what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.session.metrics_log import read_metrics
from manylora.server.cli.main import app
from tests.support.paths import ROOT
from tests.support.training_runs import ROWS, config, run

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": ["--standalone", "--nproc-per-node", "2"],
    "accelerate": [
        "--config_file",
        "examples/training/fsdp2-cpu.yaml",
    ],  # every process holds half of the base
}


@pytest.mark.sweep
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one(
    launcher: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows in every step: batches of two in each of two processes, or of four in one."""
    monkeypatch.chdir(ROOT)
    rows = [*ROWS, *({**row, "n": 1} for row in ROWS[:2])]
    one = config(tiny_llama, tmp_path, rows, name="one", max_steps=4)
    run(one)
    two = one.model_copy(update={"batch_size": 2, "output_dir": tmp_path / "two"})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(two))
    command = ["train", "--config", str(file), "--launcher", launcher, "--", *LAUNCHERS[launcher]]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    first, second = (load_file(c.output_dir / "adapter" / "adapter_model.safetensors") for c in (one, two))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert float((value - second[key]).norm()) <= 1e-3 * float(value.norm()) + 1e-6, key
    curves = [
        [x["loss"] for x in read_metrics(c.output_dir / "metrics.jsonl") if "loss" in x] for c in (one, two)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_a_launcher_that_fails_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tiny_llama, tmp_path)))
    command = ["train", "--config", str(file), "--launcher", "torchrun", "--", "--no-such-option"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "torchrun ended with status" in result.stderr
    alone = CliRunner().invoke(app, ["train", "--config", str(file), "--", "--nproc-per-node", "2"])
    assert alone.exit_code == 2
    assert "only --launcher takes options" in alone.stderr
