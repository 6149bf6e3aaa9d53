"""Adapters on routed experts merged into files: what PEFT merges, whatever form the base's files have."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.errors import ArtifactError, BaseModelError, MergeFailed
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.merge.compose import compose, save
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.recipe import Member, check_members, recipe_of
from manylora.adapters.merge.weights import merged_weight
from tests.support.engine_harness import EngineHarness
from tests.support.expert_adapters import BOTH, write_older, write_stacked
from tests.support.members import LIMITS
from tests.support.tiny_models import EXPERT_FAMILIES, tiny_model

ONE = "1.mlp.experts.down_proj"
ASKED: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": BOTH, "target_modules": ["q_proj"]},
    "one": {"target_parameters": [ONE], "target_modules": [], "use_rslora": True},
}
EXPERTS = {"mixtral": 6, "qwen3_moe": 8}


class Case:
    """A base with experts on disk, in layers of each or in stacked parameters, and adapters on them."""

    def __init__(self, root: Path, family: str, *, stacked: bool = False) -> None:
        sizes = {"intermediate_size": 48} if family == "mixtral" else {}
        self.directory = tiny_model(root / "base", family, **sizes)
        self.file = self.directory / "model.safetensors"
        if stacked:
            model: Any = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            save_file(state, self.file, {"format": "pt"})
        self.stored = StoredModel(self.directory)
        self.base = self.stored.describe("base")
        self.paths = {
            name: write_stacked(root / name, self.directory, asked, seed=seed)
            for seed, (name, asked) in enumerate(ASKED.items())
        }
        self.paths["older"] = write_older(root / "older", self.directory, family, EXPERTS[family])

    def members(self, **weights: float) -> list[Member]:
        return [
            Member(name, read_artifact(self.paths[name], self.base, LIMITS), weight)
            for name, weight in weights.items()
        ]


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def merged_by_peft(case: Case, name: str) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on targets
        peft: Any = PeftModel.from_pretrained(loaded(case.directory), case.paths[name])
        merged = peft.merge_and_unload()
    return dict(merged.state_dict())


def weighted_sum(case: Case, weights: dict[str, float]) -> dict[str, torch.Tensor]:
    """The base with the changes that PEFT makes, each by its weight."""
    deltas = {name: merged_by_peft(case, name) for name in weights}
    return {
        key: value + sum(weight * (deltas[name][key] - value) for name, weight in weights.items())
        for key, value in loaded(case.directory).state_dict().items()
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("stacked", [False, True], ids=["layers", "stacked"])
@pytest.mark.parametrize("name", ["both", "one", "older"])
def test_one_adapter_is_what_peft_merges(tmp_path: Path, family: str, stacked: bool, name: str) -> None:
    """Tensor by tensor, under the names that the base's files have; and the comparison finds it right."""
    case = Case(tmp_path, family, stacked=stacked)
    exported = export(plan_export(case.stored, "base", case.members(**{name: 1.0})), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(case.file).keys()
    assert_same(dict(loaded(tmp_path / "out").state_dict()), merged_by_peft(case, name))
    assert exported.verification is not None
    assert exported.verification.error < 1e-3
    assert exported.verification.effect > 0.02
    assert exported.effect_kept > 0.999


def test_several_are_their_weighted_sum_also_in_bf16(tmp_path: Path) -> None:
    case = Case(tmp_path, "mixtral")
    weights = {"both": 0.5, "one": -0.7, "older": 0.25}
    expected = weighted_sum(case, weights)
    export(plan_export(case.stored, "base", case.members(**weights)), tmp_path / "fp32")
    assert_same(dict(loaded(tmp_path / "fp32").state_dict()), expected)
    plan = plan_export(case.stored, "base", case.members(**weights), dtype=torch.bfloat16)
    exported = export(plan, tmp_path / "bf16")
    assert exported.verification is not None
    assert exported.verification.effect > exported.verification.limit
    tensors = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_what_no_adapter_changes_stays_as_it_is(tmp_path: Path) -> None:
    case = Case(tmp_path, "qwen3_moe")
    export(plan_export(case.stored, "base", case.members(one=1.0)), tmp_path / "out")
    before, after = load_file(case.file), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.1.mlp.experts.{i}.down_proj.weight" for i in range(8)}


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("stacked", [False, True])
def test_the_base_is_the_one_that_is_served(tmp_path: Path, family: str, stacked: bool) -> None:
    """By its fingerprint, which is of the stacked parameters."""
    case = Case(tmp_path, family, stacked=stacked)
    assert case.base.fingerprint == EngineHarness(case.directory).base.fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_merge_of_an_expert_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The comparison hears of it, in float32 and in 16 bits."""
    case = Case(tmp_path, "mixtral")

    def wrong(weight: torch.Tensor, deltas: Any) -> torch.Tensor:
        return merged_weight(weight, [(delta, 1.3 * share) for delta, share in deltas])

    monkeypatch.setattr("manylora.adapters.merge.export.merged_weight", wrong)
    with pytest.raises(MergeFailed, match="logits differ"):
        export(
            plan_export(case.stored, "base", case.members(both=1.0), dtype=dtype),
            tmp_path / "out",
            compute_dtype=dtype,
        )
    assert not (tmp_path / "out").exists()


def test_in_16_bits_the_comparison_lets_the_right_one_pass(tmp_path: Path) -> None:
    case = Case(tmp_path, "qwen3_moe")
    plan = plan_export(case.stored, "base", case.members(both=1.0, older=0.5), dtype=torch.bfloat16)
    exported = export(plan, tmp_path / "out", compute_dtype=torch.bfloat16)
    assert exported.verification is not None
    assert exported.verification.error <= exported.verification.limit


def test_files_that_lack_an_expert(tmp_path: Path) -> None:
    case = Case(tmp_path, "mixtral")
    tensors = load_file(case.file)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"]
    save_file(tensors, case.file, {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"no tensor 'model.layers.1.mlp.experts.gate_up_proj'"):
        StoredModel(case.directory).describe("base")


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("weights", [{"one": 2.0}, {"both": 0.5, "one": -0.7, "older": 0.25}], ids=len)
def test_composed_they_are_what_peft_loads(tmp_path: Path, family: str, weights: dict[str, float]) -> None:
    case = Case(tmp_path, family)
    composition = compose(case.members(**weights), recipe_of("linear"), case.base)
    save(composition, tmp_path / "composed")
    case.paths["composed"] = tmp_path / "composed"
    assert_same(merged_by_peft(case, "composed"), weighted_sum(case, weights))
    again = case.members(composed=1.0)[0].artifact.delta
    assert again.keys() == composition.modules.keys()


def test_a_composition_cut_to_a_rank_says_what_it_lost(tmp_path: Path) -> None:
    case = Case(tmp_path, "qwen3_moe")
    members = case.members(both=1.0, older=1.0)
    for method in ("svd", "ties"):
        composition = compose(members, recipe_of(method, rank=3), case.base)
        assert composition.rank == 3
        assert 0.001 < composition.energy.share_lost < 0.9
        save(composition, tmp_path / method)
        case.paths[method] = tmp_path / method
        for name, delta in case.members(**{method: 1.0})[0].artifact.delta.items():
            factors = composition.modules[name].factors
            torch.testing.assert_close(delta.scaled_b() @ delta.a, factors.b @ factors.a)


def test_biases_on_b_do_not_go_with_experts(tmp_path: Path) -> None:
    case = Case(tmp_path, "mixtral")
    config = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remark on layers without a bias
        get_peft_model(loaded(case.directory), config).save_pretrained(tmp_path / "biased")
    case.paths["biased"] = tmp_path / "biased"
    with pytest.raises(ArtifactError, match="both changes experts and biased has biases on B"):
        check_members(case.members(both=1.0, biased=1.0), recipe_of("linear"))
