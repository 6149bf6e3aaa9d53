"""Adapters with virtual tokens in a batch with everything else equal PEFT with each of them alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.inputs import AdapterPages, StepInputs
from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_kinds import PeftPerAdapter
from tests.support.adapter_set import LLAMA_TARGETS, TARGETS, prompt_of, recorded_logits
from tests.support.adapters import write_kind
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.peft_oracle import assert_logits_match
from tests.support.soft_prompts import (
    TOKENS,
    SoftPromptOnSum,
    SoftPromptPeft,
    model_for_prefixes,
    write_soft_prompt,
    write_soft_prompts,
)
from tests.support.tiny_models import FUSED_FAMILIES
from tests.support.vocabulary_adapters import make

FAST = [("llama-untied-bias", False), ("gpt2", True)]
SLOW = [
    *((family, False) for family in FUSED_FAMILIES if family != "llama-untied-bias"),
    *((family, True) for family in ("llama-untied-bias", "gemma2", "gemma3", "gpt_neox", "opt", "phi3")),
]
CASES = [*FAST, *(pytest.param(*case, marks=[pytest.mark.slow, pytest.mark.sweep]) for case in SLOW)]
LENGTHS = (37, 1, 20, 9, 16, 33, 17, 3, 30, 5, 12)


@dataclass
class Served:
    """A tiny model with one adapter of each sort of soft prompt, LoRA and DoRA, and PEFT for all of them."""

    model: Path
    paths: dict[str, Path]
    harness: EngineHarness
    pages: dict[str, AdapterPages]
    prompts: SoftPromptPeft
    others: PeftPerAdapter

    @classmethod
    def make(cls, root: Path, family: str, *, generic: bool) -> Served:
        model = model_for_prefixes(root / "model", family)
        paths = write_soft_prompts(root, model)
        prompts = SoftPromptPeft(model, paths)
        attention, _ = TARGETS.get(family, LLAMA_TARGETS)
        options = {"r": 6, "lora_alpha": 12, "target_modules": [*attention]}
        conv = {"fan_in_fan_out": True} if family == "gpt2" else {}
        others = {
            "lora": write_kind(root / "lora", model, peft_type="LORA", seed=1, **options, **conv),
            "dora": write_kind(
                root / "dora", model, peft_type="LORA", seed=2, use_dora=True, **options, **conv
            ),
        }
        harness = EngineHarness(model, generic=generic, max_batch_tokens=48)
        assert isinstance(harness.decoder, FusedDecoder) != generic
        pages = {name: harness.load(path) for name, path in (paths | others).items()}
        return cls(model, paths | others, harness, pages, prompts, PeftPerAdapter(model, others))

    def row(self, name: str | None, prompt: tuple[int, ...], **options: object) -> Sequence:
        mix = [] if name is None else [(self.pages[name], 1.0)]
        return self.harness.sequence(prompt, *mix, **{"max_tokens": 5, **options})  # type: ignore[arg-type]

    def expected(self, name: str | None, ids: list[int]) -> torch.Tensor:
        """PEFT's logits [T, V]."""
        return self.prompts.logits(ids, name) if name in TOKENS else self.others.logits(ids, name)

    def check(self, names: list[str | None], rows: list[Sequence]) -> list[Answer]:
        """Run ``rows`` together: logits and greedy tokens are PEFT's."""
        with recorded_logits() as logits:
            answers = self.harness.run(*rows)
        for name, row, answer in zip(names, rows, answers, strict=True):
            ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
            expected = self.expected(name, ids)[row.num_prompt_tokens - 1 :]
            assert_logits_match(torch.stack(logits[row.id]), expected, name=str(name))
            assert expected.argmax(-1).tolist() == answer.token_ids, name
        return answers

    @property
    def names(self) -> list[str | None]:
        return [None, *self.paths]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served.make(tmp_path_factory.mktemp("llama"), "llama-untied-bias", generic=False)


@pytest.fixture(autouse=True)
def sizes(request: pytest.FixtureRequest) -> None:
    """Every test begins with an engine of the usual sizes."""
    if "llama" in request.fixturenames:
        request.getfixturevalue("llama").harness.new_engine()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "generic"), CASES)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, generic: bool) -> None:
    """Beside LoRA, DoRA and the base; then from the prefix cache."""
    served = Served.make(tmp_path, family, generic=generic)
    names = served.names
    for cached in (False, True):
        rows = [served.row(name, prompt_of(n, n)) for name, n in zip(names, LENGTHS, strict=True)]
        served.check(names, rows)
        assert any(row.num_cached_tokens for row in rows) == cached


@pytest.mark.slow
@pytest.mark.parametrize("rows_a_step", [1, 7, 16, 33])
def test_chunks(llama: Served, rows_a_step: int) -> None:
    """Steps end within virtual tokens, behind them, and within a block."""
    llama.harness.new_engine(max_batch_tokens=rows_a_step)
    for name in TOKENS:
        llama.check([name], [llama.row(name, prompt_of(18, 4))])


@pytest.mark.slow
def test_preemption(llama: Served) -> None:
    """Sequences give up their blocks, virtual tokens and all, and are computed again."""
    llama.harness.new_engine(num_blocks=9)
    names: list[str | None] = ["cartridge", "multitask", "prefix", "p", None]
    rows = [llama.row(name, prompt_of(9, i), max_tokens=40) for i, name in enumerate(names)]
    llama.check(names, rows)
    assert sum(row.num_preemptions for row in rows) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_the_prefix_cache(llama: Served, name: str) -> None:
    """Blocks of virtual tokens are found again; those of the base or of another adapter never."""
    prompt = prompt_of(40, 7)
    everyone = llama.names
    llama.check(everyone, [llama.row(other, prompt) for other in everyone])
    cold = [llama.row(name, prompt)]
    (answer,) = llama.check([name], cold)
    full = (TOKENS[name] + len(prompt) - 1) // 16 * 16
    assert answer.last.cached_tokens == max(0, full - TOKENS[name])
    half = [llama.row(name, prompt[:20] + prompt_of(9, 8))]
    llama.check([name], half)
    assert half[0].num_cached_tokens == max(0, (TOKENS[name] + 20) // 16 * 16 - TOKENS[name])


def test_what_is_in_the_cache_depends_on_the_adapter(llama: Served, tmp_path: Path) -> None:
    """Two adapters that differ in their virtual tokens only share nothing."""
    harness = llama.harness
    for name in ("prompt", "prefix"):
        other = harness.load(write_soft_prompt(tmp_path / name, llama.model, name, seed=99))
        oracle = SoftPromptPeft(llama.model, {"other": tmp_path / name})
        prompt = prompt_of(40, 11)
        llama.check([name], [llama.row(name, prompt)])
        row = harness.sequence(prompt, (other, 1.0), max_tokens=3)
        with recorded_logits() as logits:
            (answer,) = harness.run(row)
        assert answer.last.cached_tokens == 0
        ids = [*prompt, *answer.token_ids[:-1]]
        assert_logits_match(torch.stack(logits[row.id]), oracle.logits(ids, "other")[len(prompt) - 1 :])


@pytest.mark.parametrize("name", ["prompt", "p", "prefix", "cartridge"])
def test_several_answers_share_the_prompt(llama: Served, name: str) -> None:
    prompt = prompt_of(30, 3)
    mix = llama.row(name, prompt).mix
    leader = llama.row(name, prompt)
    rows = [leader, *(_sibling(leader, mix, index) for index in (1, 2))]
    llama.check([name] * 3, rows)
    assert rows[1].num_cached_tokens == (TOKENS[name] + 29) // 16 * 16 - TOKENS[name]


def _sibling(leader: Sequence, mix: object, index: int) -> Sequence:
    return Sequence(
        10_000 + index,
        tuple(leader.token_ids),
        leader.params,
        mix,  # type: ignore[arg-type]
        index=index,
        leader=leader,
    )


@pytest.mark.parametrize("rows_a_step", [3, 48])
@pytest.mark.parametrize("name", ["prompt", "multitask", "prefix"])
def test_scores_of_the_prompt(llama: Served, name: str, rows_a_step: int) -> None:
    """Of its own tokens, each given those before it; virtual tokens have none."""
    llama.harness.new_engine(max_batch_tokens=rows_a_step)
    prompt = prompt_of(20, 5)
    (answer,) = llama.harness.run(llama.row(name, prompt, prompt_logprobs=2, max_tokens=1))
    first, *scores = answer.deltas[0].prompt_logprobs
    expected = llama.expected(name, list(prompt)).log_softmax(-1)
    assert first is None
    assert [score.token_id for score in scores if score] == list(prompt[1:])
    for position, score in enumerate(scores):
        assert score is not None
        assert score.logprob == pytest.approx(float(expected[position, score.token_id]), abs=1e-3)


MIXES = (("prompt", 0.5), ("p", -1.0), ("multitask", 1.0), ("prefix", 0.7), ("cartridge", 2.0))


@pytest.mark.parametrize(("name", "weight"), MIXES)
def test_a_mix_with_lora(llama: Served, name: str, weight: float) -> None:
    """LoRA acts on every computed row, those of virtual tokens included."""
    harness, prompt = llama.harness, prompt_of(22, 9)
    members = (llama.pages[name], 1.0), (llama.pages["lora"], weight)
    rows = [
        harness.sequence(prompt, *members, max_tokens=4),
        harness.sequence(prompt, (llama.pages["lora"], weight), max_tokens=4),
        llama.row(name, prompt),
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    oracle = SoftPromptOnSum(llama.model, harness.base, llama.paths[name], [(llama.paths["lora"], weight)])
    ids = [*prompt, *answers[0].token_ids[:-1]]
    assert_logits_match(torch.stack(logits[rows[0].id]), oracle.logits(ids)[len(prompt) - 1 :])
    assert len({tuple(answer.token_ids[:4]) for answer in answers}) == 3


def test_a_mix_with_embeddings_of_its_own(llama: Served, tmp_path: Path) -> None:
    """Embeddings of tokens change, those of virtual tokens don't."""
    options: dict[str, Any] = {"target_modules": ["q_proj"], "trainable_token_indices": [*range(0, 256, 3)]}
    path = make(tmp_path / "tokens", llama.model, seed=5, **options)
    harness, prompt = llama.harness, prompt_of(12, 10)
    members = (llama.pages["prompt"], 1.0), (harness.load(path), 1.0)
    row = harness.sequence(prompt, *members, max_tokens=4)
    with recorded_logits() as logits:
        (answer,) = harness.run(row)
    base = AutoModelForCausalLM.from_pretrained(llama.model, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, path).merge_and_unload()
    oracle = peft.PeftModel.from_pretrained(merged, llama.paths["prompt"]).eval()
    with torch.inference_mode():
        expected = oracle(input_ids=torch.tensor([[*prompt, *answer.token_ids[:-1]]])).logits[0]
    assert_logits_match(torch.stack(logits[row.id]), expected[TOKENS["prompt"] + len(prompt) - 1 :])


def test_steps_without_soft_prompts_are_what_they_were(
    llama: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is given, nothing is copied; and a soft prompt alone runs no adapter on its rows."""
    harness, seen = llama.harness, []
    step = harness.decoder.step

    def watching(inputs: StepInputs) -> torch.Tensor:
        seen.append(inputs)
        return step(inputs)

    monkeypatch.setattr(harness.decoder, "step", watching)
    harness.run(llama.row(None, prompt_of(9, 1)), llama.row("lora", prompt_of(9, 1)))
    assert all(not inputs.prompts and not inputs.cached for inputs in seen)
    seen.clear()
    harness.run(*(llama.row(name, prompt_of(9, 1)) for name in (None, "prompt", "prefix")))
    assert [bool(inputs.prompts) for inputs in seen] == [True, *[False] * (len(seen) - 1)]
    assert [len(inputs.cached) for inputs in seen] == [1, *[0] * (len(seen) - 1)]
    assert all(inputs.lora is None for inputs in seen)
    assert len(seen[0].token_ids) == 9 + 9 + (5 + 9), "a prefix takes no rows"


def test_logits_are_handed_out_behind_virtual_tokens(llama: Served) -> None:
    """As a comparison asks for them: some of the given tokens' logits, in chunks."""
    llama.harness.new_engine(max_batch_tokens=4)
    prompt = prompt_of(30, 2)
    for name in ("multitask", "prefix"):
        row = llama.row(name, prompt, max_tokens=0)
        row.next_logits = 22
        (answer,) = llama.harness.run(row)
        parts = [delta.logits for delta in answer.deltas if delta.logits is not None]
        assert parts[0].first == 22
        assert_logits_match(torch.cat([part.rows for part in parts]), llama.expected(name, list(prompt))[22:])


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["pytorch", "generic", "native"])
def test_in_bf16_it_errs_no_more_than_peft(tmp_path: Path, kernels: str) -> None:
    model = model_for_prefixes(tmp_path / "model", "llama")
    paths = write_soft_prompts(tmp_path, model)
    chosen = "native" if kernels == "native" else "pytorch"
    harness = EngineHarness(model, generic=kernels == "generic", dtype="bf16", kernels=chosen)
    pages = {name: harness.load(path) for name, path in paths.items()}
    rows = [
        harness.sequence(prompt_of(30, i), (pages[name], 1.0), max_tokens=1) for i, name in enumerate(paths)
    ]
    with recorded_logits() as logits:
        harness.run(*rows)
    exact, rounded = SoftPromptPeft(model, paths), SoftPromptPeft(model, paths, dtype=torch.bfloat16)
    ours, theirs = [], []
    for i, (name, row) in enumerate(zip(paths, rows, strict=True)):
        want = exact.logits(prompt_of(30, i), name)[-1]
        ours.append(float((logits[row.id][0].float() - want).norm() / want.norm()))
        theirs.append(float((rounded.logits(prompt_of(30, i), name)[-1] - want).norm() / want.norm()))
    assert sum(ours) <= 1.3 * sum(theirs) + 1e-3, (ours, theirs)
    assert max(ours) < 0.05, ours
