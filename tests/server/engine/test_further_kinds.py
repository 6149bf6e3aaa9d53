"""Every further kind beside plain LoRA in one batch equals PEFT with what PEFT itself has saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.adapter_kinds import HookedModel, PeftPerAdapter
from tests.support.adapter_set import LLAMA_TARGETS, TARGETS, prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.further_kinds import CASES, Names, save_with_peft, write_further_kinds
from tests.support.peft_oracle import assert_logits_match
from tests.support.tiny_models import tiny_model

FAMILIES = [
    pytest.param("llama-untied-bias", False, id="llama"),
    pytest.param("gpt2", True, id="gpt2"),
    pytest.param("qwen2", False, id="qwen2", marks=[pytest.mark.slow, pytest.mark.sweep]),
    pytest.param("llama", True, id="llama-generic", marks=pytest.mark.slow),
    pytest.param("opt", True, id="opt", marks=[pytest.mark.slow, pytest.mark.sweep]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "generic"), FAMILIES)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, generic: bool) -> None:
    model = tiny_model(tmp_path / "model", family)
    paths = write_further_kinds(tmp_path, model, family)
    attention, _ = TARGETS.get(family, LLAMA_TARGETS)
    paths["plain"] = write_adapter(tmp_path / "plain", model, targets=attention, seed=99)
    harness = EngineHarness(model, generic=generic, max_batch_tokens=48)
    pages = {name: harness.load(path) for name, path in paths.items()}
    names = [None, *paths]
    rows = [
        harness.sequence(
            prompt_of(3 + 5 * i % 31, i), *([] if name is None else [(pages[name], 1.0)]), max_tokens=3
        )
        for i, name in enumerate(names)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    oracle = PeftPerAdapter(model, paths)
    for name, row, answer in zip(names, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = oracle.logits(ids, name)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(name))
        assert expected.argmax(-1).tolist() == answer.token_ids
        base = oracle.logits(ids, None)[row.num_prompt_tokens - 1 :]
        if name is not None:
            assert float((expected - base).abs().max()) > 0.01 * float(base.abs().max()), f"{name}: idle"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loha", "hra", "vblora"])
def test_with_embeddings_and_a_head_of_their_own(tmp_path: Path, name: str) -> None:
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    config = CASES[name](Names(*LLAMA_TARGETS))
    config.modules_to_save = ["embed_tokens", "lm_head"]
    path = save_with_peft(tmp_path / name, model, config)
    harness = EngineHarness(model)
    row = harness.sequence(prompt_of(9), (harness.load(path), 1.0), max_tokens=3)
    with recorded_logits() as logits:
        (answer,) = harness.run(row)
    ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
    expected = PeftPerAdapter(model, {name: path}).logits(ids, name)[row.num_prompt_tokens - 1 :]
    assert_logits_match(torch.stack(logits[row.id]), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "generic"), [("llama-untied-bias", False), ("gpt2", True)], ids=["llama", "gpt2"]
)
def test_every_kind_as_a_member_of_a_mix(tmp_path: Path, family: str, generic: bool) -> None:
    """At weight w an adapter changes every module by w times its change."""
    model = tiny_model(tmp_path / "model", family)
    paths = write_further_kinds(tmp_path, model, family)
    attention, _ = TARGETS.get(family, LLAMA_TARGETS)
    paths["plain"] = write_adapter(tmp_path / "plain", model, targets=attention, seed=99)
    harness = EngineHarness(model, generic=generic)
    pages = {name: harness.load(path) for name, path in paths.items()}
    others = [*paths][1:] + [*paths][:1]
    mixes = [((name, 0.4), (other, -0.3)) for name, other in zip(paths, others, strict=True)]
    rows = [
        harness.sequence(prompt_of(5 + i % 9, i), *((pages[n], w) for n, w in mix), max_tokens=2)
        for i, mix in enumerate(mixes)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    hooked_model = HookedModel(model, harness.base, paths)
    for mix, row, answer in zip(mixes, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = hooked_model.logits(ids, mix)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(mix))
