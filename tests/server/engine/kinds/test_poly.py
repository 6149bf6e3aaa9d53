"""Poly of one task is LoRA: beside others and in mixes it equals PEFT, which is told the task."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.errors import ArtifactError
from tests.support.adapter_set import LLAMA_TARGETS, TARGETS, prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.further_kinds import pretend_training
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model

OPTIONS: dict[str, dict[str, Any]] = {
    "one skill": {"r": 3, "n_skills": 1},
    "skills": {"r": 5, "n_skills": 4},
    "splits": {"r": 4, "n_skills": 3, "n_splits": 4},
    "full": {"r": 64, "n_skills": 2, "n_splits": 2},
}


def trained(root: Path, model: Path, name: str, modules: list[str]) -> Any:
    """PEFT's model, of which an adapter has been saved in ``root``."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.PolyConfig(task_type="CAUSAL_LM", target_modules=modules, **OPTIONS[name])
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(len(name))
        adapted = peft.get_peft_model(base, config).eval()
        pretend_training(adapted)
        adapted.save_pretrained(root / name)
    return adapted


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-untied-bias", "gpt_neox"])
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path / "model", family)
    attention, mlp = TARGETS.get(family, LLAMA_TARGETS)
    oracles = {name: trained(tmp_path, model, name, [*attention, mlp[-1]]) for name in OPTIONS}
    harness = EngineHarness(model, generic=family == "gpt_neox")
    rows = [
        harness.sequence(prompt_of(7 + i, i), (harness.load(tmp_path / name), 1.0), max_tokens=3)
        for i, name in enumerate(OPTIONS)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows, harness.sequence(prompt_of(5)))
    for (name, oracle), row, answer in zip(oracles.items(), rows, answers, strict=False):
        ids = torch.tensor([[*row.token_ids[: row.num_prompt_tokens], *answer.token_ids[:-1]]])
        with torch.inference_mode():
            expected = oracle(input_ids=ids, task_ids=torch.tensor([0])).logits[0]
        expected = expected[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=name)
        assert expected.argmax(-1).tolist() == answer.token_ids


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    base = EngineHarness(model).base
    trained(tmp_path, model, "splits", ["q_proj"])
    config = tmp_path / "splits" / "adapter_config.json"
    text = config.read_text()
    for key, value, reason in (
        ("n_tasks", 2, "n_tasks=2 is not served: a request can't name its task"),
        ("n_tasks", 10**9, "n_tasks should be a whole number"),
        ("n_splits", 5, "n_splits=5 does not divide inputs and outputs"),
        ("n_splits", 10**9, "n_splits should be a whole number"),
        ("n_skills", 0, "n_skills should be a whole number"),
        ("n_skills", 4, "size mismatch"),
        ("r", 10**6, "r should be a positive integer"),
    ):
        old = f'"{key}": {OPTIONS["splits"].get(key, 1)},'
        assert old in text
        config.write_text(text.replace(old, f'"{key}": {value},'))
        with pytest.raises(ArtifactError, match=reason):
            read(tmp_path / "splits", base)
