"""Trained tokens as a kind of their own equal PEFT's, in one batch with others, tied and untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LNTuningConfig, TrainableTokensConfig

from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import Peft, assert_logits_match
from tests.support.tiny_models import VOCAB, tiny_model
from tests.support.vocabulary_adapters import GROWN, make_any, peft_logits

NAMES = {"llama": ("embed_tokens", "lm_head", "norm"), "gpt2": ("wte", "lm_head", "ln_f")}
NAMES["gemma3"] = NAMES["llama"]
CASES = [
    ("llama", True, False), ("llama", False, False), ("llama", True, True), ("gpt2", True, True),
    ("gemma3", True, True),
]  # fmt: skip


def configs_of(family: str, *, tied: bool) -> dict[str, tuple[Any, int | None]]:
    """Configs by name, with the rows of the resized model that they are made on."""
    embedding, head, norm = NAMES[family]
    found: dict[str, tuple[Any, int | None]] = {
        "default": (TrainableTokensConfig(token_indices=[3, 70, 5]), None),
        "named": (TrainableTokensConfig(token_indices=[200, 4], target_modules=[embedding]), None),
        "head": (TrainableTokensConfig(token_indices=[70, 200], target_modules=[head]), None),
        "norms": (LNTuningConfig(target_modules=[norm], modules_to_save=[head]), None),
    }
    if tied:
        found["grown"] = (TrainableTokensConfig(token_indices=[3, VOCAB + 1]), GROWN)
    else:
        found["both"] = (
            TrainableTokensConfig(token_indices=[5, 9], target_modules=[embedding, head]), None,
        )  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied", "generic"), CASES)
def test_a_mixed_batch_equals_peft_one_by_one(
    tmp_path: Path, family: str, *, tied: bool, generic: bool
) -> None:
    model = tiny_model(tmp_path / "model", family, tie_word_embeddings=tied)
    configs = configs_of(family, tied=tied)
    paths = {"plain": write_adapter(tmp_path / "plain", model, targets="all-linear")}
    for seed, (name, (config, rows)) in enumerate(configs.items()):
        paths[name] = make_any(tmp_path / name, model, config, seed=seed, rows=rows)
    harness = EngineHarness(model, generic=generic, max_batch_tokens=48)
    pages = {name: harness.load(path) for name, path in paths.items()}
    names: list[str | None] = [None, *paths]
    prompts = [_prompt(grown=name == "grown", length=5 + 6 * i) for i, name in enumerate(names)]
    sequences = [
        harness.sequence(prompt, *([] if name is None else [(pages[name], 1.0)]), max_tokens=4)
        for name, prompt in zip(names, prompts, strict=True)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*sequences)
    for asked, prompt, row, answer in zip(names, prompts, sequences, answers, strict=True):
        ids = [*prompt, *answer.token_ids[:-1]]
        if asked is None:
            expected = Peft(model, {}).logits(ids, None)
        else:
            expected = peft_logits(model, paths[asked], ids, configs.get(asked, (None, None))[1])
        expected = expected[len(prompt) - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(asked))
        assert expected.argmax(-1).tolist() == answer.token_ids


def test_a_mix_adds_up_what_rows_and_norms_change(tmp_path: Path) -> None:
    """One member changes what is read, the other how it is scaled: PEFT's model with both in its weights."""
    model = tiny_model(tmp_path / "model", "llama", tie_word_embeddings=False)
    tokens = make_any(tmp_path / "tokens", model, TrainableTokensConfig(token_indices=[3, 70]), seed=1)
    norms = make_any(tmp_path / "norms", model, LNTuningConfig(target_modules=["norm"]), seed=2)
    harness = EngineHarness(model)
    prompt = _prompt(grown=False, length=9)
    members = [(harness.load(path), 1.0) for path in (tokens, norms)]
    row = harness.sequence(prompt, *members, max_tokens=3)
    with recorded_logits() as logits:
        (answer,) = harness.run(row)
    both: Any = Peft(model, {"tokens": tokens}).model.merge_and_unload()
    norm = Peft(model, {"norms": norms}).model.merge_and_unload().model.norm
    both.model.norm.weight.data = norm.weight.data
    ids = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
    with torch.inference_mode():
        expected = both(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    assert_logits_match(torch.stack(logits[row.id]), expected)


def _prompt(*, grown: bool, length: int) -> tuple[int, ...]:
    """Random tokens, the trained and the added ones among them."""
    return (3, 70, 5, 4, 200, *prompt_of(length, length), *((VOCAB + 1, 9) if grown else ()))
