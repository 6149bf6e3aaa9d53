"""Merged copies of adapters that change routed experts answer like their mix, and as PEFT merges it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix, Sequence
from manylora.server.kernels.weights import MergedWeights
from manylora.server.model.decoders.merging import Members, merge, merged_elements
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.expert_adapters import BOTH, write_older, write_stacked
from tests.support.peft_oracle import assert_logits_match
from tests.support.tiny_models import EXPERT_FAMILIES, tiny_model

Ints = tuple[int, ...]
LIMITS = Limits(max_rank=64, max_bytes=1 << 30)
ASKED: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": BOTH, "target_modules": []},
    "one": {
        "target_parameters": ["1.mlp.experts.down_proj"],
        "target_modules": ["q_proj"],
        "use_rslora": True,
    },
}


class Merging:
    """A model with experts, adapters on them under both names, and copies of mixes of these."""

    def __init__(self, root: Path, family: str, dense: Ints = (), **options: Any) -> None:
        """``dense`` are the layers of four that have an MLP for all tokens; without any there are two."""
        sizes: dict[str, Any] = {"intermediate_size": 48} if family == "mixtral" else {}
        if dense:
            sizes = {"num_hidden_layers": 4, "intermediate_size": 112, "mlp_only_layers": list(dense)}
        self.model = tiny_model(root / "model", family, **sizes)
        self.paths = {
            name: write_stacked(root / name, self.model, asked, seed=seed)
            for seed, (name, asked) in enumerate(ASKED.items())
        }
        experts = 6 if family == "mixtral" else 8
        if not dense:
            self.paths["older"] = write_older(root / "older", self.model, family, experts)
        self.harness = EngineHarness(self.model, **options)
        self.pages = {name: self.harness.load(path) for name, path in self.paths.items()}

    def members(self, **weights: float) -> Members:
        return [
            (read_artifact(self.paths[name], self.harness.base, LIMITS).delta, weight)
            for name, weight in weights.items()
        ]

    def merged(self, **weights: float) -> MergedWeights:
        made = self.harness.decoder.merged()
        for _ in merge(self.harness.decoder, self.members(**weights), made):
            pass
        return made

    def on(self, merged: MergedWeights, prompt: int) -> Sequence:
        sequence = self.harness.sequence(prompt_of(prompt, prompt), max_tokens=4)
        sequence.mix = ResolvedMix((), b"merged", "merged", merged)
        return sequence

    def unmerged(self, prompt: int, **weights: float) -> Sequence:
        members = [(self.pages[name], weight) for name, weight in weights.items()]
        return self.harness.sequence(prompt_of(prompt, prompt), *members, max_tokens=4)


MIXES: tuple[dict[str, float], ...] = ({"both": 1.0}, {"both": 0.5, "one": -0.4, "older": 0.3})


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("options", [{}, {"kernels": "native", "dtype": "bf16"}], ids=["pytorch", "native"])
def test_a_copy_answers_like_its_mix(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """Two copies, the base and the unmerged mixes in turn, in one queue; the base's rows keep their bits."""
    merging = Merging(tmp_path, family, **options)
    copies = [merging.on(merging.merged(**mix), 9 + 8 * i) for i, mix in enumerate(MIXES)]
    twins = [merging.unmerged(9 + 8 * i, **mix) for i, mix in enumerate(MIXES)]
    base = merging.unmerged(9)
    with recorded_logits() as logits:
        (alone,) = merging.harness.run(merging.unmerged(9))
        answers = merging.harness.run(*copies, base, *twins)
    assert answers[len(copies)].token_ids == alone.token_ids
    for copy, twin, answer, expected in zip(copies, twins, answers, answers[len(copies) + 1 :], strict=False):
        change = (logits[copy.id][0] - logits[base.id][0]).norm() / logits[base.id][0].norm()
        assert float(change) > 0.05
        if options:  # the merged weights are rounded once more
            assert_logits_match(logits[copy.id][0], logits[twin.id][0], tolerance=0.02)
        else:
            assert answer.token_ids == expected.token_ids
            assert_logits_match(torch.stack(logits[copy.id]), torch.stack(logits[twin.id]))


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("name", ["both", "one", "older"])
def test_a_copy_is_what_peft_merges(tmp_path: Path, family: str, name: str) -> None:
    merging = Merging(tmp_path, family)
    copy = merging.on(merging.merged(**{name: 1.0}), 9)
    base: Any = AutoModelForCausalLM.from_pretrained(merging.model, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on targets
        peft: Any = PeftModel.from_pretrained(base, merging.paths[name])
        theirs = peft.merge_and_unload()
    with recorded_logits() as logits:
        (answer,) = merging.harness.run(copy)
    with torch.inference_mode():
        expected = theirs(torch.tensor([[*prompt_of(9, 9), *answer.token_ids]])).logits[0, 8:-1]
    assert_logits_match(torch.stack(logits[copy.id]), expected)


@pytest.mark.parametrize("dense", [(), (0, 2)])
@pytest.mark.parametrize("options", [{}, {"kernels": "native", "dtype": "bf16"}], ids=["pytorch", "native"])
def test_weights_are_read_back_and_the_base_is_untouched(
    tmp_path: Path, options: dict[str, Any], dense: Ints
) -> None:
    """What the step packed is what the model has, before and after copies were made and used."""
    merging = Merging(tmp_path, "qwen3_moe", dense, **options)
    decoder, dtype = merging.harness.decoder, merging.harness.loaded.dtype
    own: Any = AutoModelForCausalLM.from_pretrained(merging.model, dtype=dtype)
    experts = [(number, module) for number, module in enumerate(decoder.modules) if module.expert]
    assert len(experts) == 2 * 2 * 8
    for _ in range(2):
        for number, module in experts:
            stack, _, expert = module.name.rpartition(".")
            assert torch.equal(decoder.weight(number), own.get_parameter(stack)[int(expert)]), module.name
            assert decoder.bias(number) is None
        merged = merging.merged(both=0.5, one=-1.0)
        copy, twin = merging.on(merged, 7), merging.unmerged(7, both=0.5, one=-1.0)
        with recorded_logits() as logits:
            merging.harness.run(copy, twin)
        assert_logits_match(logits[copy.id][0], logits[twin.id][0], tolerance=0.02)


def test_memory_is_that_of_what_changes(tmp_path: Path) -> None:
    """Told before it is made; experts that no member changes stay the base's."""
    merging = Merging(tmp_path, "mixtral", kernels="native", dtype="bf16")
    for mix, layers in (({"one": 1.0}, 0), ({"both": 1.0}, 2), ({"older": 1.0}, 2)):
        members = merging.members(**mix)
        told = 2 * merged_elements(merging.harness.decoder, members)
        made = merging.merged(**mix)
        assert told <= made.nbytes <= 1.1 * told
        gate_ups = [name for name in members[0][0] if ".gate_up_proj." in name]
        assert len(gate_ups) == 6 * layers
