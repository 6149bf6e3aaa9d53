"""Several adapters at once are what each would be alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.jobs.train_jobs import check_jobs
from manylora.server.cli.main import app
from tests.support.training_data import chat
from tests.support.training_runs import ROWS, config, run

pytestmark = pytest.mark.slow

OTHER = [chat(f"what about {n}?", f"no, not {n}") for n in range(18)]


def test_jobs_equal_runs_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    """Uneven ranks, targets, batch sizes, schedules, lengths and numbers of steps."""
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    alone = [
        config(tiny_llama, tmp_path / "x", max_steps=6),
        config(
            tiny_llama, tmp_path / "y", OTHER, max_steps=None, num_train_epochs=2.0, batch_size=8, lora_r=2,
            target_modules="attention", use_rslora=True, lr_scheduler="linear", weight_decay=0.1, seed=3,
            rank_pattern={"q_proj": 6}, loraplus_ratio=2.0,
        ),
    ]  # fmt: skip
    expected = [run(settings) for settings in alone]
    together = [c.model_copy(update={"output_dir": c.output_dir.with_name("together")}) for c in alone]
    files = [tmp_path / f"{index}.yaml" for index in range(2)]
    for file, settings in zip(files, together, strict=True):
        file.write_text(to_yaml(settings))
    result = CliRunner().invoke(app, ["train", "--jobs", *map(str, files)])
    assert result.exit_code == 0, result.output
    for single, settings in zip(expected, together, strict=True):
        one, other = (
            load_file(d / "adapter_model.safetensors")
            for d in (single.adapter, settings.output_dir / "adapter")
        )
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert float((value - other[key]).norm()) <= 2e-3 * float(value.norm()) + 1e-6, key
        assert (settings.output_dir / "report.html").is_file()


def test_what_does_not_go_together(tiny_llama: Path, tmp_path: Path) -> None:
    first = config(tiny_llama, tmp_path, ROWS)
    second = first.model_copy(update={"dtype": "bf16", "lora_dropout": 0.1})
    with pytest.raises(TrainingConfigError) as caught:
        check_jobs([first, second])
    said = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in said] == ["dtype", "output_dir", "lora_dropout"]
    assert "job 2" in said[2]
    result = CliRunner().invoke(app, ["train", "--jobs", "a.yaml", "--resume"])
    assert result.exit_code == 2
    assert "--jobs does not go with --resume" in result.stderr
