"""Composed adapters: exact sums, measured truncation, what is refused, and what PEFT makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from manylora.adapters.errors import ArtifactError, StoreError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.pooling import PoolingConfig
from manylora.adapters.format.provenance import read_provenance
from manylora.adapters.merge.compose import Composition, compose, save
from manylora.adapters.merge.recipe import Member, Recipe
from tests.support.adapters import write_kind
from tests.support.members import LIMITS, Make

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def wanted_sum(members: Sequence[Member]) -> dict[str, torch.Tensor]:
    """``Σ w s B A`` of every module in float64."""
    total: dict[str, torch.Tensor] = {}
    for member in members:
        for name, delta in member.artifact.delta.items():
            change = member.weight * (delta.scaled_b().double() @ delta.a.double())
            total[name] = total.get(name, torch.zeros_like(change)) + change
    return total


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], error: float) -> None:
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        assert (found[name].double() - change).norm() <= error * change.norm() + 1e-12, name


def changes(composition: Composition) -> dict[str, torch.Tensor]:
    return {n: m.factors.b.double() @ m.factors.a.double() for n, m in composition.modules.items()}


def peft_changes(base_dir: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each weight."""
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    peft: Any = PeftModel.from_pretrained(model, adapter)
    named = peft.base_model.model.named_modules()
    return {n: m.get_delta_weight("default").detach() for n, m in named if hasattr(m, "get_delta_weight")}


def three(make: Make) -> list[Member]:
    """Members of different ranks, scalings and targets."""
    return [
        make("plain", 0.7, rank=4, alpha=8, targets=ATTENTION, seed=1),
        make("rslora", -0.5, rank=9, alpha=6, targets="all-linear", rslora=True, seed=2),
        make(
            "patterns",
            1.5,
            rank=8,
            targets=("q_proj", "down_proj"),
            rank_pattern={"down_proj": 3, "layers.1.self_attn.q_proj": 5},
            alpha_pattern={"q_proj": 5},
            rslora=True,
            seed=3,
        ),
    ]


def test_linear_is_exact_and_plain_peft_computes_it(
    make: Make, base: BaseModel, tiny_llama: Path, tmp_path: Path
) -> None:
    members = three(make)
    out = tmp_path / "out"
    composition = compose(members, Recipe("linear"), base)
    save(composition, out)
    wanted = wanted_sum(members)
    assert_same(changes(composition), wanted, 1e-6)
    assert_same(peft_changes(tiny_llama, out), wanted, 1e-6)
    ours = {n: d.scaling * (d.b @ d.a) for n, d in read_artifact(out, base, LIMITS).delta.items()}
    assert_same(ours, wanted, 1e-6)
    assert composition.modules["model.layers.1.self_attn.q_proj"].factors.rank == 4 + 9 + 5
    assert composition.energy.share_lost == 0


MEMBERS = st.lists(
    st.fixed_dictionaries(
        {
            "weight": st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3),
            "rank": st.integers(1, 12),
            "alpha": st.integers(1, 40),
            "rslora": st.booleans(),
            "targets": st.sampled_from([("q_proj",), ATTENTION, ("up_proj", "v_proj"), "all-linear"]),
            "rank_pattern": st.sampled_from([{}, {"v_proj": 3}, {"layers.0.self_attn.q_proj": 7}]),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MEMBERS)
def test_linear_is_exact_for_any_members(make: Make, base: BaseModel, drawn: list[dict[str, Any]]) -> None:
    members = [make(f"m{i}", seed=i, **options) for i, options in enumerate(drawn)]
    found = compose(members, Recipe("linear"), base)
    assert_same(changes(found), wanted_sum(members), 1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MEMBERS, st.integers(1, 12))
def test_svd_loses_exactly_what_it_says(
    make: Make, base: BaseModel, drawn: list[dict[str, Any]], rank: int
) -> None:
    """The best that any matrix of the rank can do, by the singular values of the whole change."""
    members = [make(f"m{i}", seed=i, **options) for i, options in enumerate(drawn)]
    found = compose(members, Recipe("svd", rank=rank), base)
    total = lost = 0.0
    for name, change in wanted_sum(members).items():
        energy = torch.linalg.svdvals(change).square()
        module = found.modules[name]
        assert module.factors.rank <= rank
        assert math.isclose(module.energy.total, float(energy.sum()), rel_tol=1e-4)
        best = float(energy[rank:].sum())
        assert math.isclose(module.energy.lost, best, rel_tol=1e-3, abs_tol=1e-9 * float(energy.sum()))
        off = float((module.factors.b.double() @ module.factors.a.double() - change).square().sum())
        assert math.isclose(off, best, rel_tol=1e-3, abs_tol=1e-9 * float(energy.sum()))
        total, lost = total + float(energy.sum()), lost + best
    assert math.isclose(found.energy.share_lost, lost / total, rel_tol=1e-3, abs_tol=1e-8)


@pytest.mark.filterwarnings("ignore:The density 1.0")  # PEFT's remark that nothing is thinned out
@pytest.mark.parametrize(
    ("recipe", "combination"),
    [
        (Recipe("svd", rank=6), {"combination_type": "svd"}),
        (Recipe("magnitude_prune", 6, 0.4), {"combination_type": "magnitude_prune_svd", "density": 0.4}),
        (
            Recipe("ties", 6, 0.4, sign_method="total"),
            {"combination_type": "ties_svd", "density": 0.4, "majority_sign_method": "total"},
        ),
        (
            Recipe(
                "ties", 6, 1.0, sign_method="frequency"
            ),  # nothing thinned out: three votes are never tied
            {"combination_type": "ties_svd", "density": 1.0, "majority_sign_method": "frequency"},
        ),
    ],
    ids=["svd", "magnitude_prune", "ties-total", "ties-frequency"],
)
def test_peft_agrees_where_it_is_right(
    make: Make, base: BaseModel, tiny_llama: Path, recipe: Recipe, combination: dict[str, Any]
) -> None:
    """On members without rsLoRA, of weight 1 (PEFT elects signs before it weighs the members)."""
    members = [
        make("one", 1.0, rank=4, alpha=8, targets=ATTENTION, seed=1),
        make("two", 1.0, rank=6, alpha=6, targets=ATTENTION, seed=2),
        make("three", 1.0, rank=3, alpha=9, targets=ATTENTION, seed=3),
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    peft: Any = PeftModel.from_pretrained(model, members[0].artifact.directory, "one")
    for member in members[1:]:
        peft.load_adapter(member.artifact.directory, member.name)
    peft.add_weighted_adapter(["one", "two", "three"], [1.0] * 3, "sum", svd_rank=6, **combination)
    theirs = {
        n: m.get_delta_weight("sum").detach()
        for n, m in peft.base_model.model.named_modules()
        if hasattr(m, "get_delta_weight")
    }
    assert_same(changes(compose(members, recipe, base)), {n: t.double() for n, t in theirs.items()}, 1e-3)


def test_equal_members_add_up(make: Make, base: BaseModel) -> None:
    half = make("a", 0.5, rank=4)
    found = compose([half, half], Recipe("linear"), base)
    assert found.rank == 4
    assert found.lineage["members"] == [{"name": "a", "digest": half.artifact.digest, "weight": 1.0}]


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")  # PEFT's remark that it can't be merged
@pytest.mark.parametrize("recipe", [Recipe("linear"), Recipe("svd", rank=40)], ids=["linear", "svd"])
def test_a_bias_on_b_is_part_of_the_sum(
    make: Make, base: BaseModel, tiny_llama: Path, tmp_path: Path, recipe: Recipe
) -> None:
    biased = make("biased", 2.0, rank=4, targets=ATTENTION, lora_bias=True, rslora=True)
    plain = make("plain", -0.5, rank=3, targets=("q_proj", "up_proj"), seed=3)
    out = _saved(compose([biased, plain], recipe, base), tmp_path)
    wanted = {n: 2 * d.scaling * d.b_bias for n, d in biased.artifact.delta.items() if d.b_bias is not None}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    peft: Any = PeftModel.from_pretrained(model, out)
    for name, layer in peft.base_model.model.named_modules():
        if hasattr(layer, "lora_B"):
            found = layer.scaling["default"] * layer.lora_B["default"].bias
            torch.testing.assert_close(found, wanted.get(name, torch.zeros_like(found)))
    assert_same(peft_changes(tiny_llama, out), wanted_sum([biased, plain]), 1e-5)
    with pytest.raises(ArtifactError, match=r"biased can't be composed: ties says nothing about a bias on B"):
        compose([biased], Recipe("ties", 4, 0.5, sign_method="total"), base)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA scales the base's own weights"),
    "alora": ({"alora_invocation_tokens": [1, 2]}, "it acts only from certain tokens on"),
}


def test_what_is_no_sum_of_low_rank(make: Make, base: BaseModel, tmp_path: Path) -> None:
    """All of them in one error, each with its reason; VeRA is one, once its factors are multiplied out."""
    ia3: Any = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    write_kind(tmp_path / "ia3", base, peft_type="IA3", **ia3)
    write_kind(tmp_path / "vera", base, peft_type="VERA", r=6, target_modules=["q_proj", "up_proj"])
    vera, scaled = (Member(n, read_artifact(tmp_path / n, base, LIMITS), 1.0) for n in ("vera", "ia3"))
    members = [make(name, 1.0, **options) for name, (options, _) in REFUSED.items()]
    with pytest.raises(ArtifactError) as caught:
        compose([vera, scaled, *members], Recipe("linear"), base)
    reasons = {name: reason for name, (_, reason) in REFUSED.items()} | {"ia3": "IA3 scales the base's own"}
    assert len(caught.value.faults) == len(reasons)
    for name, reason in reasons.items():
        assert any(f.startswith(f"{name} can't be composed: {reason}") for f in caught.value.faults)
    assert_same(changes(compose([vera], Recipe("linear"), base)), wanted_sum([vera]), 1e-6)


def test_one_that_says_how_it_embeds(make: Make, base: BaseModel) -> None:
    member = make("vectors", 1.0)
    embeds = replace(member, artifact=replace(member.artifact, pooling=PoolingConfig()))
    with pytest.raises(ArtifactError, match="vectors can't be composed: it embeds and says how"):
        compose([embeds], Recipe("linear"), base)


def _saved(composition: Composition, tmp_path: Path) -> Path:
    save(composition, tmp_path / "saved")
    return tmp_path / "saved"


def test_what_is_written_says_where_it_comes_from(make: Make, base: BaseModel, tmp_path: Path) -> None:
    members = three(make)[:2]
    out = _saved(compose(members, Recipe("svd", rank=5), base), tmp_path)
    provenance = read_provenance(out)
    assert provenance.base_fingerprint == base.fingerprint
    assert provenance.lineage["method"] == "svd"
    assert provenance.lineage["rank"] == 5
    assert 0 < provenance.lineage["energy_lost"] < 1
    recorded = {m["name"]: m["weight"] for m in provenance.lineage["members"]}
    assert recorded == {"plain": 0.7, "rslora": -0.5}
    card = (out / "README.md").read_text()
    assert "| plain | `" in card
    assert "`svd` (rank 5)" in card


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe("svd"), ["svd needs rank"]),
        (Recipe("linear", rank=4, seed=1), ["linear has no rank", "linear has no seed"]),
        (Recipe("ties", rank=0, density=1.5), ["needs sign_method", "rank 0", "density 1.5"]),
        (Recipe("dare_linear", 4, 0.5), ["needs seed"]),
        (Recipe("cat"), ["'cat' is none of linear, svd"]),  # type: ignore[arg-type]
    ],
)
def test_a_recipe_that_is_not_one(make: Make, base: BaseModel, recipe: Recipe, said: list[str]) -> None:
    with pytest.raises(ArtifactError) as caught:
        compose([make("a", 1.0)], recipe, base)
    assert len(caught.value.faults) == len(said)
    assert all(part in str(caught.value) for part in said)


def test_members_that_cancel_out(make: Make, base: BaseModel) -> None:
    member = make("a", 1.0)
    opposite = Member("b", member.artifact, -1.0)
    with pytest.raises(ArtifactError, match="nothing is left"):
        compose([member, opposite], Recipe("linear"), base)


def test_nothing_half_written(make: Make, base: BaseModel, tmp_path: Path, monkeypatch: Any) -> None:
    composition = compose([make("a", 1.0)], Recipe("linear"), base)
    before = sorted(tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("manylora.adapters.format.saving.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        save(composition, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        save(composition, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
