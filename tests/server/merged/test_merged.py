"""Sequences on merged copies of the base, beside sequences on the base and on unmerged adapters."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix, Sequence
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.kernels.weights import MergedWeights
from manylora.server.model.decoders.merging import merge, merged_elements
from tests.support.adapter_kinds import write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness, hf_greedy
from tests.support.peft_oracle import assert_logits_match
from tests.support.tiny_models import tiny_model

LIMITS = Limits(max_rank=64, max_bytes=1 << 30)


class MergeHarness:
    """A harness with two adapters, and merged copies of mixes of them."""

    def __init__(self, directory: Path, **options: object) -> None:
        family = options.pop("family", "llama")
        self.harness = EngineHarness(tiny_model(directory / "model", family), **options)  # type: ignore[arg-type]
        self.directory = directory
        self.artifacts = []
        self.pages: list[AdapterPages] = []
        some = ["q_proj", "down_proj"] if self.harness.decoder.name == "fused" else "all-linear"
        for i, targets in enumerate((some, "all-linear")):
            path = write_adapter(directory / str(i), self.harness.base, targets=targets, rank=4 + i, seed=i)
            self.artifacts.append(read_artifact(path, self.harness.base, LIMITS))
            self.pages.append(self.harness.load(path))

    def merged(self, *weights: float) -> MergedWeights:
        made = self.harness.decoder.merged()
        members = [(a.delta, w) for a, w in zip(self.artifacts, weights, strict=True) if w]
        for _ in merge(self.harness.decoder, members, made):
            pass
        element = self.harness.loaded.dtype.itemsize
        assert made.nbytes <= merged_elements(self.harness.decoder, members) * element * 1.2
        return made

    def on(self, merged: MergedWeights, prompt: int) -> Sequence:
        sequence = self.harness.sequence(prompt_of(prompt, prompt), max_tokens=8)
        sequence.mix = ResolvedMix((), b"merged", "merged", merged)
        return sequence

    def unmerged(self, prompt: int, *weights: float) -> Sequence:
        members = [(p, w) for p, w in zip(self.pages, weights, strict=True) if w]
        return self.harness.sequence(prompt_of(prompt, prompt), *members, max_tokens=8)


CASES: list[dict[str, Any]] = [
    {"kernels": "native", "dtype": "bf16"},
    {"kernels": "pytorch"},
    {"generic": True},
    {"family": "gpt2"},
    {"family": "gemma2", "kernels": "native", "dtype": "bf16"},
    {"family": "phi3", "kernels": "native", "dtype": "bf16"},
]


def _case_name(case: dict[str, Any]) -> str:
    return "-".join(map(str, case.values()))


@pytest.fixture(params=CASES, ids=_case_name)
def merging(request: pytest.FixtureRequest, tmp_path: Path) -> MergeHarness:
    return MergeHarness(tmp_path, **request.param)


@pytest.mark.slow
def test_a_merged_copy_answers_like_its_mix(merging: MergeHarness) -> None:
    """Several copies, the base and unmerged rows at once: every row as if it ran alone."""
    one, both = merging.merged(1.0, 0.0), merging.merged(0.5, -0.25)
    pairs = [(one, (1.0, 0.0)), (both, (0.5, -0.25)), (one, (1.0, 0.0)), (both, (0.5, -0.25))]
    copies = [merging.on(merged, 5 + 8 * i) for i, (merged, _) in enumerate(pairs)]
    twins = [merging.unmerged(5 + 8 * i, *weights) for i, (_, weights) in enumerate(pairs)]
    base = merging.unmerged(9, 0.0, 0.0)
    with recorded_logits() as logits:
        alone = merging.harness.run(merging.unmerged(9, 0.0, 0.0))
        answers = merging.harness.run(*copies, base, *twins)
    assert answers[len(copies)].token_ids == alone[0].token_ids
    for copy, twin, answer, expected in zip(copies, twins, answers, answers[len(copies) + 1 :], strict=False):
        if merging.harness.loaded.dtype == torch.float32:
            assert answer.token_ids == expected.token_ids
            assert_logits_match(torch.stack(logits[copy.id]), torch.stack(logits[twin.id]))
        else:  # the merged weights are rounded once more
            assert_logits_match(logits[copy.id][0], logits[twin.id][0], tolerance=0.02)


@pytest.mark.slow
def test_the_base_is_untouched(merging: MergeHarness) -> None:
    before = [merging.harness.decoder.weight(m).clone() for m in range(len(merging.harness.decoder.modules))]
    for _ in range(3):
        merging.harness.run(merging.on(merging.merged(1.0, 1.0), 7))
    for module, weight in enumerate(before):
        assert torch.equal(merging.harness.decoder.weight(module), weight)


@pytest.mark.slow
@pytest.mark.parametrize("merging", [c for c in CASES if "dtype" not in c], indirect=True, ids=_case_name)
def test_a_merged_copy_is_what_peft_merges(merging: MergeHarness) -> None:
    """In float32: PEFT's own merge rounds otherwise, and bf16 is compared with the mix above."""
    one = merging.on(merging.merged(0.0, 1.0), 9)
    base = AutoModelForCausalLM.from_pretrained(merging.directory / "model", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remark on Conv1D
        peft: Any = PeftModel.from_pretrained(base, merging.directory / "1")
        merged = peft.merge_and_unload()
    with recorded_logits() as logits:
        (answer,) = merging.harness.run(one)
    assert answer.token_ids == hf_greedy(merged, prompt_of(9, 9), 8)
    with torch.inference_mode():
        expected = merged(torch.tensor([[*prompt_of(9, 9), *answer.token_ids]])).logits[0, 8:-1]
    assert_logits_match(torch.stack(logits[one.id]), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["llama", "gpt2", *(pytest.param(f, marks=pytest.mark.sweep) for f in ("gemma2", "phi3"))]
)
def test_every_kind_that_can_be_merged_answers_as_unmerged(tmp_path: Path, family: str) -> None:
    """Biases of layers and of norms, DoRA, IA3, VeRA."""
    model = tiny_model(tmp_path / "model", family)
    harness = EngineHarness(model)
    for kind, path in write_kinds(tmp_path / "kinds", model, family).items():
        artifact, pages = read_artifact(path, harness.base, LIMITS), harness.load(path)
        made = harness.decoder.merged()
        for _ in merge(harness.decoder, [(artifact.delta, 0.75)], made):
            pass
        copy = harness.sequence(prompt_of(7), max_tokens=4)
        copy.mix = ResolvedMix((), b"merged", "merged", made)
        twin = harness.sequence(prompt_of(7), (pages, 0.75), max_tokens=4)
        with recorded_logits() as logits:
            answers = harness.run(copy, twin)
        assert answers[0].token_ids == answers[1].token_ids, kind
        assert_logits_match(torch.stack(logits[copy.id]), torch.stack(logits[twin.id]), name=kind)


@pytest.mark.slow
def test_fifty_copies_are_forgotten(merging: MergeHarness) -> None:
    made = []
    for i in range(50):
        merged = merging.merged(1.0, 0.5 + i / 50)
        if i % 10 == 0:
            merging.harness.run(merging.on(merged, 7))
            merging.harness.new_engine()  # whose prefix cache holds none of them
        made.append(weakref.ref(merged))
        del merged
    gc.collect()
    assert not any(copy() for copy in made)
