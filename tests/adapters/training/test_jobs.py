"""Several adapters at once are what each would be alone."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from typer.testing import CliRunner

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.errors import DataError, Interrupted, TrainingConfigError, TrainingError
from manylora.adapters.training.jobs.joint_steps import JointSteps
from manylora.adapters.training.jobs.shared_base import SharedBase
from manylora.adapters.training.jobs.train_jobs import check_jobs, train_jobs
from manylora.adapters.training.run.train import train
from manylora.server.cli.main import app
from tests.support.tiny_models import tiny_model
from tests.support.training_data import chat
from tests.support.training_runs import ROWS, config, losses, run

pytestmark = pytest.mark.slow

OTHER = [chat(f"what about {n}?", f"no, not {n}") for n in range(18)]


def directory(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def beside(settings: TrainConfig) -> TrainConfig:
    """The same run in another directory."""
    return settings.model_copy(update={"output_dir": settings.output_dir.with_name("together")})


def test_jobs_equal_runs_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    """Uneven ranks, targets, batch sizes, schedules, lengths and numbers of steps."""
    alone = [
        config(tiny_llama, directory(tmp_path, "x"), max_steps=6),
        config(
            tiny_llama, directory(tmp_path, "y"), OTHER, max_steps=None, num_train_epochs=2.0, batch_size=8,
            lora_r=2, target_modules="attention", use_rslora=True, lr_scheduler="linear", weight_decay=0.1,
            seed=3, rank_pattern={"q_proj": 6}, loraplus_ratio=2.0,
        ),
    ]  # fmt: skip
    expected = [run(settings) for settings in alone]
    together = [beside(settings) for settings in alone]
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


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.sweep)])
def test_on_a_base_in_few_bits(kind: str, tmp_path: Path) -> None:
    """Jobs have its weights in common, also where libraries change them at the first forward pass."""
    base = tiny_model(tmp_path / "base", intermediate_size=128)
    alone = [
        config(base, directory(tmp_path, name), quantization=kind, max_steps=4, seed=seed)
        for seed, name in enumerate("xy")
    ]
    expected = [run(settings) for settings in alone]
    found = train_jobs([beside(settings) for settings in alone])
    for one, other in zip(expected, found, strict=True):
        assert losses(other, "loss") == pytest.approx(losses(one, "loss"), rel=1e-3)


def test_one_that_fails_leaves_the_others_alone(tiny_llama: Path, tmp_path: Path) -> None:
    sound = config(tiny_llama, directory(tmp_path, "x"), max_steps=2)
    bad = config(tiny_llama, directory(tmp_path, "y"), [{"messages": []}])
    console = Console(file=io.StringIO())
    with pytest.raises(DataError, match=r"jsonl:1: messages") as caught:
        train_jobs([sound, bad], console=console)
    assert str(caught.value).startswith(f"{bad.output_dir}: ")
    assert (sound.output_dir / "adapter" / "adapter_config.json").is_file()
    assert not (bad.output_dir / "adapter").exists()
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue().splitlines()
    assert any(line.startswith(f"{bad.adapter_name}: error: ") for line in said)
    assert all(line.startswith((f"{bad.adapter_name}: ", f"{sound.adapter_name}: ")) for line in said)


def test_they_are_stopped_and_go_on(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        config(tiny_llama, directory(tmp_path, name), max_steps=6, seed=seed)
        for seed, name in enumerate("xy")
    ]
    whole = train_jobs([beside(each) for each in settings])
    step, steps = JointSteps.take, iter(range(99))

    def take(self: JointSteps, parts: Any) -> Any:
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, parts)

    monkeypatch.setattr(JointSteps, "take", take)
    with pytest.raises(Interrupted, match="at step 3 of 6"):
        train_jobs(settings)
    found = train_jobs(settings, resume=True)
    for one, other in zip(whole, found, strict=True):
        assert losses(other, "loss") == pytest.approx(losses(one, "loss"), rel=1e-3)


def test_after_one_has_failed_they_go_on(tiny_llama: Path, tmp_path: Path) -> None:
    """Those that have checkpoints from them, the one that is mended from its beginning."""
    sound = config(tiny_llama, directory(tmp_path, "x"), max_steps=2)
    bad = config(tiny_llama, directory(tmp_path, "y"), [{"messages": []}], max_steps=2)
    with pytest.raises(DataError):
        train_jobs([sound, bad])
    mended = config(tiny_llama, tmp_path / "y", max_steps=2)
    before = (sound.output_dir / "metrics.jsonl").read_text()
    assert len(train_jobs([sound, mended], resume=True)) == 2
    assert (sound.output_dir / "metrics.jsonl").read_text().startswith(before)
    assert (mended.output_dir / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (OSError(28, "No space left on device"), "OSError: .*No space left"),
    ],
)
def test_an_unexpected_end_of_one_is_told_and_leaves_the_others_alone(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str
) -> None:
    sound, unlucky = (config(tiny_llama, directory(tmp_path, name), max_steps=2) for name in "xy")
    real = train

    def unlucky_train(config: TrainConfig, **options: Any) -> Any:
        if config.output_dir == unlucky.output_dir:
            raise fault
        return real(config, **options)

    monkeypatch.setattr("manylora.adapters.training.jobs.train_jobs.train", unlucky_train)
    with pytest.raises(TrainingError, match=said) as caught:
        train_jobs([sound, unlucky])
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert (sound.output_dir / "adapter" / "adapter_config.json").is_file()


def test_quantized_weights_are_there_once(tmp_path: Path) -> None:
    """Each run has a model of its own, whose codes are those of all."""
    base = tiny_model(tmp_path / "base", intermediate_size=128)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    shared = SharedBase()
    first, second = (
        shared.tree((), lambda: AutoModelForCausalLM.from_pretrained(base, quantization_config=bits))
        for _ in range(2)
    )
    assert first is not second
    pairs = [
        (one, other)
        for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True)
        if name.endswith("proj.weight")
    ]
    assert pairs
    for one, other in pairs:
        assert one.data_ptr() == other.data_ptr()
        assert one.quant_state.absmax.data_ptr() == other.quant_state.absmax.data_ptr()


def test_what_does_not_go_together(tiny_llama: Path, tmp_path: Path) -> None:
    first = config(tiny_llama, tmp_path, ROWS)
    second = first.model_copy(
        update={"dtype": "bf16", "init": "pissa", "modules_to_save": ("norm",), "report_to": ("wandb",)}
    )
    with pytest.raises(TrainingConfigError) as caught:
        check_jobs([first, second])
    said = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in said] == [
        *("dtype", "output_dir", "init", "modules_to_save", "report_to")
    ]
    assert "job 2" in said[2]
    result = CliRunner().invoke(app, ["train", "--jobs", "a.yaml", "--dry-run"])
    assert result.exit_code == 2
    assert "--jobs does not go with --dry-run" in result.stderr
