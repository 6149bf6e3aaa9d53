"""aLoRA: rows before the invocation tokens run without the adapter, and so do the blocks they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.engine.sequence import ResolvedMix, last_occurrence, plan_stages
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import Peft, assert_logits_match, read
from tests.support.tiny_models import tiny_model

WAKE, CALL = (261, 262), (263,)
PLAIN = prompt_of(23, 5)


class Activated:
    """Two aLoRA adapters and a plain one on one model."""

    def __init__(self, root: Path, family: str, **options: Any) -> None:
        self.directory = tiny_model(root / "model", family)
        self.paths = {
            "wake": self._write(root / "wake", 1, alora_invocation_tokens=list(WAKE)),
            "call": self._write(root / "call", 2, alora_invocation_tokens=list(CALL)),
            "plain": self._write(root / "plain", 3),
        }
        self.harness = EngineHarness(self.directory, **options)
        self.pages = {name: self.harness.load(path) for name, path in self.paths.items()}

    def _write(self, path: Path, seed: int, **options: Any) -> Path:
        return write_adapter(
            path, self.directory, rank=8, seed=seed, scale=0.2, targets="all-linear", **options
        )

    def members(self, *names: str) -> list[tuple[AdapterPages, float]]:
        return [(self.pages[name], 1.0 if len(names) == 1 else 0.5) for name in names]

    @torch.inference_mode()
    def expected(self, ids: Sequence[int], prompt: Sequence[int], *names: str) -> torch.Tensor:
        """Logits of a full forward, each member's delta added by a hook on the rows it runs for."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32).eval()
        for name, (pages, weight) in zip(names, self.members(*names), strict=True):
            wanted = pages.activation
            start = 0 if wanted is None else last_occurrence(tuple(prompt), wanted)
            for path, delta in read(self.paths[name], self.harness.base).delta.items():
                matrix = weight * delta.scaling * (delta.b @ delta.a)
                if start is not None:
                    model.get_submodule(path).register_forward_hook(_adding(matrix, start))
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]  # type: ignore[no-any-return]


def _adding(matrix: torch.Tensor, start: int) -> Any:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        del module
        changed = output.clone()
        changed[:, start:] += args[0][:, start:] @ matrix.T
        return changed

    return hook


@pytest.fixture(scope="module", params=[("llama", False), ("gpt2", True)], ids=["fused", "generic"])
def activated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Activated:
    family, generic = request.param
    return Activated(tmp_path_factory.mktemp(family), family, generic=generic, max_batch_tokens=48)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Activated:
    return Activated(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize(
    ("prompt", "wanted", "found"),
    [
        ((1, 2, 3), (2, 3), 1),
        ((2, 3, 2, 3), (2, 3), 2),
        ((2, 2, 2), (2, 2), 1),
        ((2, 3), (2, 3), 0),
        ((3, 2), (2, 3), None),
        ((2,), (2, 3), None),
    ],
)
def test_the_last_occurrence_counts(
    prompt: tuple[int, ...], wanted: tuple[int, ...], found: int | None
) -> None:
    assert last_occurrence(prompt, wanted) == found


def test_the_stages_of_a_mix(llama: Activated) -> None:
    wake, call, plain = llama.members("wake", "call", "plain")
    mix = ResolvedMix((wake, call, plain), b"whole")
    prompt = (*CALL, 1, *WAKE, 2, *WAKE)
    stages = plan_stages(prompt, mix)
    assert [stage.start for stage in stages] == [0, 5]
    assert [stage.members for stage in stages] == [(call, plain), (wake, call, plain)]
    assert stages[1].digest == mix_digest(MixEntry(p.digest, w) for p, w in mix.members)
    assert plan_stages((1, 2), mix)[0].members == (plain,)
    assert plan_stages((1, 2), ResolvedMix((wake,), b"x"))[0].digest == b""


CASES: list[tuple[tuple[str, ...], tuple[int, ...]]] = [
    (("wake",), (*PLAIN, *WAKE, *prompt_of(20, 1))),
    (("wake",), (*WAKE, *prompt_of(60, 2), *WAKE)),  # the later one; it ends the prompt
    (("wake",), prompt_of(37, 3)),  # never switched on: the base
    (("wake",), (*WAKE, *prompt_of(9, 4))),  # from the first token on
    (("call",), (*prompt_of(16, 6), *CALL, *prompt_of(4, 7))),  # where a block begins
    (("wake", "call", "plain"), (*PLAIN, *WAKE, *prompt_of(30, 8), *CALL, *prompt_of(3, 9))),
    (("wake", "call"), (*PLAIN, *CALL, *prompt_of(2, 10), *WAKE)),
    (("plain",), (*PLAIN, *WAKE, 5)),
    ((), (*PLAIN, *WAKE, *prompt_of(20, 1))),
]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"max_batch_tokens": 7}, {"num_blocks": 14}], ids=str)
def test_a_mixed_batch_is_what_hooks_on_the_model_compute(
    activated: Activated, sizes: dict[str, int]
) -> None:
    """At once, in chunks that cut across the activation, and with preemption by recompute."""
    activated.harness.new_engine(**sizes)
    rows = [
        activated.harness.sequence(prompt, *activated.members(*names), max_tokens=6)
        for names, prompt in CASES
    ]
    with recorded_logits() as logits:
        answers = activated.harness.run(*rows)
    for (names, prompt), row, answer in zip(CASES, rows, answers, strict=True):
        expected = activated.expected([*prompt, *answer.token_ids[:-1]], prompt, *names)[len(prompt) - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected)
        assert expected.argmax(-1).tolist() == answer.token_ids
    if "num_blocks" in sizes:
        assert sum(row.num_preemptions for row in rows) > 0


def test_peft_generates_the_same(llama: Activated) -> None:
    llama.harness.new_engine()
    peft = Peft(llama.directory, llama.paths)
    for name, prompt in [(names[0], prompt) for names, prompt in CASES if len(names) == 1]:
        (answer,) = llama.harness.run(llama.harness.sequence(prompt, *llama.members(name), max_tokens=8))
        with torch.inference_mode(), peft.running(name) as model:
            ids = torch.tensor([prompt])
            theirs = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8,
                do_sample=False, pad_token_id=256, eos_token_id=None,
            )[0, len(prompt) :].tolist()  # fmt: skip
        assert answer.token_ids == theirs


def test_the_adapter_makes_a_difference_and_only_where_it_runs(llama: Activated) -> None:
    prompt = (*PLAIN, *WAKE, *prompt_of(20, 1))
    base, adapted = llama.expected(prompt, prompt), llama.expected(prompt, prompt, "wake")
    assert torch.equal(base[: len(PLAIN)], adapted[: len(PLAIN)])
    assert float((base - adapted)[len(PLAIN) :].abs().amax(-1).min()) > 0.05


def test_the_blocks_before_activation_are_the_bases(llama: Activated) -> None:
    """And those from there on are nobody else's."""
    harness = llama.harness
    harness.new_engine()
    prompt = (*prompt_of(40), *WAKE, *prompt_of(30, 1))  # activation in the third block
    cached = []
    for names in [(), ("wake",), ("wake",), ("call",), ("plain",), ("wake", "plain"), ("plain",)]:
        row = harness.sequence(prompt, *llama.members(*names), max_tokens=2)
        (answer,) = harness.run(row)
        expected = llama.expected([*prompt, answer.token_ids[0]], prompt, *names)[-2:]
        assert expected.argmax(-1).tolist() == answer.token_ids
        cached.append(answer.last.cached_tokens)
    assert cached == [0, 32, 64, 64, 0, 0, 64]


def test_an_adapters_blocks_serve_the_base_up_to_the_activation(llama: Activated) -> None:
    harness = llama.harness
    harness.new_engine()
    prompt = (*prompt_of(40, 9), *WAKE, *prompt_of(30, 1))
    cached = []
    for names in [("wake",), ()]:
        (answer,) = harness.run(harness.sequence(prompt, *llama.members(*names), max_tokens=1))
        cached.append(answer.last.cached_tokens)
    assert cached == [0, 32]


def test_another_place_of_activation_shares_only_what_lies_before_both(llama: Activated) -> None:
    """Two prompts that begin alike but activate at different tokens."""
    harness = llama.harness
    harness.new_engine()
    head = (*prompt_of(20, 11), *WAKE, *prompt_of(40, 12))
    later = (*head, *WAKE, 7)
    cached = []
    for prompt in (head, later, later, head):
        row = harness.sequence(prompt, *llama.members("wake"), max_tokens=1)
        (answer,) = harness.run(row)
        assert llama.expected(prompt, prompt, "wake")[-1].argmax() == answer.token_ids[0]
        cached.append(row.num_cached_tokens)
    assert cached == [0, 16, 64, 48]


def test_prompt_scores_across_the_activation(llama: Activated) -> None:
    prompt = (*PLAIN, *WAKE, *prompt_of(20, 1))
    llama.harness.new_engine(max_batch_tokens=9)
    (answer,) = llama.harness.run(
        llama.harness.sequence(prompt, *llama.members("wake"), max_tokens=1, prompt_logprobs=0)
    )
    table = llama.expected(prompt, prompt, "wake").log_softmax(-1)
    found = [score.logprob for score in answer.last.prompt_logprobs if score is not None]
    wanted = table[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    assert found == pytest.approx(wanted, abs=1e-3)


def test_the_answer_activates_nothing(llama: Activated) -> None:
    """Invocation tokens that the model itself writes do not count, also not after a preemption."""
    pages = replace(llama.pages["wake"], activation=(0,))
    row = llama.harness.sequence(prompt_of(5, 1), (pages, 1.0), max_tokens=4)
    assert 0 not in row.token_ids
    row.token_ids.append(0)
    assert [stage.members for stage in row.stages] == [()]
