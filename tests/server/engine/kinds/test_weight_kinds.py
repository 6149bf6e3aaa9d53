"""The weight kinds beside plain LoRA in one batch: each equals PEFT with what PEFT itself has saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.adapter_kinds import HookedModel, PeftPerAdapter
from tests.support.adapter_set import LLAMA_TARGETS, prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.further_kinds import CASES, Names, save_with_peft
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.peft_oracle import assert_logits_match
from tests.support.tiny_models import tiny_model
from tests.support.weight_kinds import WRITES, write_beside_lora

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]  # of PEFT's FRoD

FAMILIES = {  # and whether the generic decoder runs it
    "llama": ("llama-untied-bias", False),
    "gpt2": ("gpt2", True),
    "qwen2": ("qwen2", False),
    "llama-generic": ("llama", True),
    "opt": ("opt", True),
}
_SWEPT = {"low rank": {"qwen2", "opt"}, "matrices": {"qwen2", "llama-generic"}}  # by make test-all
EVERYWHERE = [
    pytest.param(
        kinds, *case, id=f"{kinds}-{name}", marks=[pytest.mark.sweep] if name in _SWEPT[kinds] else []
    )
    for kinds in WRITES
    for name, case in FAMILIES.items()
    if (kinds, name) != ("matrices", "opt")
]


@pytest.mark.parametrize(("kinds", "family", "generic"), EVERYWHERE)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, kinds: str, family: str, generic: bool) -> None:
    model = tiny_model(tmp_path / "model", family)
    paths = write_beside_lora(kinds, tmp_path, model, family)
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


@pytest.mark.parametrize("kinds", WRITES)
@pytest.mark.parametrize(
    ("family", "generic"), [("llama-untied-bias", False), ("gpt2", True)], ids=["llama", "gpt2"]
)
def test_every_kind_as_a_member_of_a_mix(tmp_path: Path, kinds: str, family: str, generic: bool) -> None:
    """At weight w an adapter changes every module by w times its change."""
    model = tiny_model(tmp_path / "model", family)
    paths = write_beside_lora(kinds, tmp_path, model, family)
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


@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], ["norm"]], ids=["tables", "norms"])
@pytest.mark.parametrize("name", ["loha", "hra", "vblora"])
def test_with_modules_of_their_own(tmp_path: Path, name: str, saved: list[str]) -> None:
    """``modules_to_save`` beside another kind than LoRA, as PEFT itself writes them."""
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    config = CASES[name](Names(*LLAMA_TARGETS))
    config.modules_to_save = saved
    path = save_with_peft(tmp_path / name, model, config)
    harness = EngineHarness(model)
    row = harness.sequence(prompt_of(9), (harness.load(path), 1.0), max_tokens=3)
    with recorded_logits() as logits:
        (answer,) = harness.run(row)
    ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
    expected = PeftPerAdapter(model, {name: path}).logits(ids, name)[row.num_prompt_tokens - 1 :]
    assert_logits_match(torch.stack(logits[row.id]), expected)


@pytest.mark.parametrize("kernels", [pytest.param("pytorch", marks=pytest.mark.sweep), "native"])
def test_in_bf16_it_errs_no_more_than_peft(tmp_path: Path, kernels: str) -> None:
    """PSOFT is far off in both: its space is that of the rounded weights. So is PEFT's FRoD."""
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    paths = write_matrix_kinds(tmp_path, model, "llama-untied-bias")
    harness = EngineHarness(model, dtype="bf16", kernels=kernels)
    pages = {name: harness.load(path) for name, path in paths.items()}
    rows = [
        harness.sequence(prompt_of(30, i), (pages[name], 1.0), max_tokens=1) for i, name in enumerate(paths)
    ]
    with recorded_logits() as logits:
        harness.run(*rows)
    exact, rounded = PeftPerAdapter(model, paths), PeftPerAdapter(model, paths, torch.bfloat16)
    ours, theirs = {}, {}
    for i, (name, row) in enumerate(zip(paths, rows, strict=True)):
        want = exact.logits(prompt_of(30, i), name)[-1]
        ours[name] = float((logits[row.id][0].float() - want).norm() / want.norm())
        theirs[name] = float((rounded.logits(prompt_of(30, i), name)[-1] - want).norm() / want.norm())
    del ours["frod"], theirs["frod"]
    assert sum(ours.values()) <= 1.3 * sum(theirs.values()) + 1e-3, (ours, theirs)
    assert all(error < 3 * theirs[name] + 0.02 for name, error in ours.items()), (ours, theirs)
