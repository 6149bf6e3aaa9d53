"""The best step is published, a worse result is told, and runs go on from adapters and for longer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from manylora.adapters.registry.records import RevisionRecord
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import CheckpointError, TrainingConfigError
from manylora.adapters.training.gate.baseline import Baseline, worse_than_base
from tests.support.training_data import chat, write
from tests.support.training_runs import PAIRS, ROWS, config, losses, run

pytestmark = pytest.mark.slow

RIGHT = "better answer likelier"
# Few rows at a high rate: the held-out loss falls, and rises again.
OVERTRAINED: dict[str, Any] = {
    "rows": ROWS[:8], "eval_split": 0.4, "max_steps": 40, "eval_steps": 4, "save_steps": 13,
    "learning_rate": 0.02, "lr_scheduler": "constant",
}  # fmt: skip


def weights(adapter: Path) -> dict[str, Any]:
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", [{}, {"init": "olora"}])
def test_the_best_step_is_published_and_said(kind: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    shown = Console(file=io.StringIO(), width=300)
    result = run(config(tiny_llama, tmp_path, **OVERTRAINED, **kind), console=shown)
    evals = {line["step"]: line["eval_loss"] for line in result.metrics if "eval_loss" in line}
    best = min(evals, key=lambda step: evals[step])
    assert best < 40
    assert (result.kept_step, result.steps) == (best, 40)
    assert result.baseline.adapter["loss"] == pytest.approx(evals[best], rel=2e-3)
    assert result.metrics[-1]["kind"] == "kept"
    assert result.metrics[-1]["kept_step"] == best
    assert f"kept step {best} of 40: its held-out loss" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert f"These are the weights of step {best}" in (result.adapter / "README.md").read_text()
    report = (result.adapter.parent / "report.html").read_text()
    assert f"{best}, which had the lowest held-out loss" in report


def test_the_last_step_if_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    result = run(config(tiny_llama, tmp_path, keep="last", **OVERTRAINED))
    assert result.kept_step == 40
    assert result.baseline.adapter["loss"] == pytest.approx(losses(result, "eval_loss")[-1], rel=2e-3)
    assert not any(line["kind"] == "kept" for line in result.metrics)


@pytest.mark.sweep
def test_a_result_worse_than_the_base_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    shown = Console(file=io.StringIO(), width=300)
    other = write(tmp_path / "eval.jsonl", [chat("say it", "~~{|}~~"), chat("say", "{{||}}")])
    changes = OVERTRAINED | {"keep": "last", "eval_split": 0.0, "eval_path": other}
    result = run(config(tiny_llama, tmp_path, **changes), console=shown)
    assert result.baseline.adapter["loss"] > result.baseline.base["loss"]
    (warning,) = result.warnings
    assert "worse than the base's" in warning
    assert f"warning: {warning}" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert f"**Warning:** {warning}" in (result.adapter / "README.md").read_text()
    assert "<strong>Warning:</strong>" in (result.adapter.parent / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "base", "adapter", "count"),
    [
        ("sft", {"loss": 8.8}, {"loss": 14.1}, 1),
        ("sft", {"loss": 8.8}, {"loss": 5.3}, 0),
        ("sft", {}, {}, 0),
        ("dpo", {RIGHT: 0.5, "margin": 0.1}, {RIGHT: 0.4, "margin": -1.0}, 2),
        ("classification", {"accuracy": 0.6}, {"accuracy": 0.5, "loss": 1.0}, 1),
    ],
)  # fmt: skip
def test_what_is_worse(task: str, base: dict[str, float], adapter: dict[str, float], count: int) -> None:
    assert len(worse_than_base(Baseline(base, adapter, ()), task)) == count


def test_going_on_from_an_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    first = run(config(tiny_llama, tmp_path, name="first"))
    settings = config(
        tiny_llama, tmp_path, name="second", init_adapter=str(first.adapter), lora_r=16, learning_rate=1e-4,
        max_steps=3, save_steps=1,
    )  # fmt: skip
    second = run(settings)
    assert losses(second)[0] < 0.7 * losses(first)[0]
    before, after = weights(first.adapter), weights(second.adapter)
    assert before.keys() == after.keys()
    changes = [
        float((after[key].float() - before[key].float()).norm() / before[key].float().norm())
        for key in before
    ]
    assert 0 < max(changes) < 0.2
    again = run(settings.model_copy(update={"max_steps": 5}), resume=True)
    assert again.steps == 5


def test_going_on_from_a_name_of_the_registry(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manylora.adapters.registry.registry import Registry

    first = run(config(tiny_llama, tmp_path, name="first", max_steps=2))
    monkeypatch.setenv("MANYLORA_DATA_DIR", str(tmp_path))
    settings = config(tiny_llama, tmp_path, name="second", init_adapter="mine", max_steps=1, lora_r=16)
    with pytest.raises(
        TrainingConfigError, match=r"--init-adapter mine: there is no such directory, and no reg"
    ):
        run(settings)
    digest = "ab" * 32
    (tmp_path / "adapters").mkdir()
    first.adapter.rename(tmp_path / "adapters" / digest)
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.names.set_revision("mine", _revision(digest), replace=False, source="test")
    assert run(settings).steps == 1
    with pytest.raises(TrainingConfigError, match="neither a directory nor a name in the registry"):
        run(settings.model_copy(update={"init_adapter": "other"}))


def _revision(digest: str) -> RevisionRecord:
    return RevisionRecord(digest, 1, 4, 14, 14, "LORA", None, None, "test", 0.0)


@pytest.mark.sweep
def test_preferences_go_on_from_an_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    """The reference is the adapter that training began with, so the loss begins at log 2."""
    first = run(config(tiny_llama, tmp_path, name="first"))
    settings = config(
        tiny_llama, tmp_path, PAIRS, name="second", task="dpo", init_adapter=str(first.adapter), max_steps=3,
        lora_r=16,
    )  # fmt: skip
    second = run(settings)
    assert losses(second)[0] == pytest.approx(0.6931, abs=1e-3)
    assert weights(first.adapter).keys() == weights(second.adapter).keys()


def test_adapters_that_can_not_be_gone_on_from(tiny_llama: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, message in (
        (str(empty), "there is no adapter_config.json"),
        (str(_written(tmp_path / "ia3", "IA3")), "its peft_type is 'IA3': only LORA"),
        (str(_written(tmp_path / "cls", "LORA", "SEQ_CLS")), "its task_type is 'SEQ_CLS'"),
        (str(_written(tmp_path / "broken", "LORA")), "can't be put on this base"),
    ):
        with pytest.raises(TrainingConfigError, match=message):
            run(config(tiny_llama, tmp_path, name="out", init_adapter=given, lora_r=16))
    with pytest.raises(
        ValueError, match="lora_r: comes with the adapter that init_adapter names; leave it out"
    ):
        TrainConfig(train_path=Path("d"), output_dir=Path("o"), init_adapter="a", lora_r=4)


def _written(folder: Path, kind: str, task: str = "CAUSAL_LM") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(f'{{"peft_type": "{kind}", "task_type": "{task}"}}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.sweep
def test_more_steps_on_resume(tiny_llama: Path, tmp_path: Path) -> None:
    """With a constant rate the longer run is bit by bit the one that was longer from the start."""
    changes: dict[str, Any] = {
        "lr_scheduler": "constant",
        "warmup": 0,
        "save_steps": 4,
        "eval_steps": 4,
        "keep": "last",
    }
    short = config(tiny_llama, tmp_path, name="short", max_steps=8, **changes)
    run(short)
    longer = run(short.model_copy(update={"max_steps": 14}), resume=True)
    whole = run(config(tiny_llama, tmp_path, name="whole", max_steps=14, **changes))
    one, other = weights(longer.adapter), weights(whole.adapter)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert losses(longer) == losses(whole)
    epochs = short.model_copy(update={"max_steps": None, "num_train_epochs": 4.0})
    assert run(epochs, resume=True).steps > 14
    with pytest.raises(
        CheckpointError, match="steps were taken already, more than the 6 of this configuration"
    ):
        run(short.model_copy(update={"max_steps": 6}), resume=True)
    with pytest.raises(CheckpointError, match=r"another seed; .* It may go on with other .*max_steps"):
        run(short.model_copy(update={"seed": 4}), resume=True)


@pytest.mark.sweep
def test_the_rate_after_a_resumption_is_that_of_the_longer_schedule(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(
        tiny_llama, tmp_path, max_steps=4, save_steps=4, eval_split=0, warmup=0, lr_scheduler="linear"
    )
    run(settings)
    rates = losses(run(settings.model_copy(update={"max_steps": 8}), resume=True), "learning_rate")
    assert rates[4:] == pytest.approx([5e-3, 3.75e-3, 2.5e-3, 1.25e-3])
