"""Rows that base and adapter answer while a run goes on: which, when, and that the run does not notice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.training.errors import Interrupted
from manylora.adapters.training.model.base import find_base
from manylora.adapters.training.model.forward import greedy, sample_prompt_ids
from manylora.adapters.training.run.train import TrainingResult, Watch
from manylora.adapters.training.trainers.callbacks import StopCallback
from tests.support.training_data import chat, write
from tests.support.training_runs import PAIRS, config, losses, run

pytestmark = pytest.mark.slow

EPOCHS: dict[str, Any] = {"max_steps": None, "num_train_epochs": 5, "eval_split": 0.0}
STEPS = [18, 24, 30]  # at which the last three epochs end


def samples(result: TrainingResult) -> list[dict[str, Any]]:
    return [line for line in result.metrics if line["kind"] == "sample"]


def by_the_base(tiny_llama: Path, questions: list[str]) -> list[str]:
    base = find_base(str(tiny_llama))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    prompts = sample_prompt_ids(base.template, questions)
    answers = greedy(model, prompts, eos_ids=base.eos_ids, pad_id=base.pad_id, max_new_tokens=8)
    return [base.tokenizer.decode(answer.token_ids) for answer in answers]


@pytest.mark.parametrize("init", ["default", pytest.param("olora", marks=pytest.mark.sweep)])
def test_rows_are_answered_at_the_last_epochs(init: str, tiny_llama: Path, tmp_path: Path) -> None:
    """By the base as it was before an init changed it. Losses are bit by bit those without."""
    plain = run(config(tiny_llama, tmp_path, name="plain", init=init, **EPOCHS))
    result = run(config(tiny_llama, tmp_path, init=init, sample_rows=2, **EPOCHS))
    assert losses(result) == losses(plain)
    found = samples(result)
    assert [(line["step"], line["line"]) for line in found] == [
        (step, line) for step in (*STEPS, 30) for line in (1, 2)
    ]
    assert [line.get("published", False) for line in found] == [False] * 6 + [True] * 2
    assert [line["prompt"] for line in found[:2]] == ["say 0", "say 1"]
    assert [line["expected"] for line in found[:2]] == ["0!", "1!"]
    assert [line["base"] for line in found] == by_the_base(tiny_llama, ["say 0", "say 1"]) * 4
    assert [line["adapter"] for line in found[4:6]] == [line["adapter"] for line in found[6:]]
    assert [line["adapter"] for line in found] != [line["base"] for line in found]
    report = (result.adapter.parent / "report.html").read_text()
    assert "While it trained" in report
    assert not samples(plain)


def test_held_out_rows_come_first(tiny_llama: Path, tmp_path: Path) -> None:
    """And the last answer of a conversation, of rows that ask something."""
    two = [*chat("one", "1!")["messages"], *chat("two", "2!")["messages"]]
    held_out = write(tmp_path / "held.jsonl", [{"messages": two}])
    changes = {**EPOCHS, "num_train_epochs": 1}
    del changes["eval_split"]
    result = run(config(tiny_llama, tmp_path, eval_path=held_out, eval_split=0.0, sample_rows=3, **changes))
    assert [(line["prompt"], line["expected"], line["line"]) for line in samples(result)] == [
        ("two", "2!", 1)
    ] * 2


@pytest.mark.sweep
def test_preferences_are_answered(tiny_llama: Path, tmp_path: Path) -> None:
    changes = {**EPOCHS, "num_train_epochs": 1}
    result = run(config(tiny_llama, tmp_path, PAIRS, task="dpo", sample_rows=1, **changes))
    assert [(line["prompt"], line["expected"]) for line in samples(result)] == [("say 0", "0!")] * 2


@pytest.mark.sweep
def test_an_interrupted_run_has_each_once(tiny_llama: Path, tmp_path: Path) -> None:
    stop, settings = StopCallback(), config(tiny_llama, tmp_path, sample_rows=1, **EPOCHS)

    def told(line: Mapping[str, Any]) -> None:
        if line["kind"] == "train" and line["step"] == 20:
            stop.ask("it is to")

    with pytest.raises(Interrupted):
        run(settings, watch=Watch(stop=stop, told=told))
    result = run(settings, resume=True)
    assert [line["step"] for line in samples(result)] == [*STEPS, 30]
    again = run(settings, resume=True)  # from its last step: only judged once more
    assert [line["step"] for line in samples(again)] == [*STEPS, 30]
