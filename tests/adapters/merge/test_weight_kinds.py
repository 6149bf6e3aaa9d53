"""The weight kinds, composed into LoRA and merged into the base: as PEFT computes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.errors import ArtifactError
from manylora.adapters.merge.compose import compose, save
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.recipe import Member, Recipe
from tests.support.adapter_set import prompt_of
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model
from tests.support.weight_kinds import WRITES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # of PEFT's FRoD
]
FAMILY = "llama-untied-bias"
COMPOSED = ("gralora", "loha", "lokr-both", "miss-mini", "tinylora-tied", "unilora-long", "vblora-top")
NEED_WEIGHTS = {
    "low rank": {"hra-many", "hra-orthogonal", "miss-bat"},
    "matrices": {"oft", "road", "glora"},
}
DO_NOT = {"low rank": set(COMPOSED), "matrices": {"fourierft-few", "shira", "beft"}}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([prompt_of(20)]), use_cache=False).logits[0].float()
    return found


def loaded(directory: Path, adapter: Path | None = None) -> Any:
    """The model in a directory, with PEFT's adapter on it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if adapter is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on biases and projections
        return PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize(
    ("kinds", "family"),
    [
        pytest.param("low rank", FAMILY, marks=pytest.mark.sweep),
        pytest.param("matrices", FAMILY, marks=pytest.mark.sweep),
        ("matrices", "gpt2"),
    ],
)
def test_what_is_merged_answers_like_peft(tmp_path: Path, kinds: str, family: str) -> None:
    """RoAd, GLoRA and BEFT change biases as well."""
    directory = tiny_model(tmp_path / "model", family)
    stored = StoredModel(directory)
    base = stored.describe("base")
    for name, path in WRITES[kinds](tmp_path / "kinds", directory, family).items():
        merged = tmp_path / "merged" / name
        export(plan_export(stored, "base", [Member(name, read(path, base), 1.0)]), merged)
        assert_logits_match(logits(loaded(merged)), logits(loaded(directory, path)), name=name)


def test_those_that_do_not_need_the_weight_compose_into_lora(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model", FAMILY)
    base = StoredModel(directory).describe("base")
    paths = WRITES["low rank"](tmp_path / "kinds", directory, FAMILY)
    for name in COMPOSED:
        member = Member(name, read(paths[name], base), 1.0)
        save(compose([member], Recipe("linear"), base), tmp_path / name)
        expected = logits(loaded(directory, paths[name]))
        assert_logits_match(logits(loaded(directory, tmp_path / name)), expected, name=name)


@pytest.mark.parametrize("kinds", WRITES)
def test_those_that_need_the_weight_do_not_compose(tmp_path: Path, kinds: str) -> None:
    directory = tiny_model(tmp_path / "model", FAMILY)
    base = StoredModel(directory).describe("base")
    refused = set()
    for name, path in WRITES[kinds](tmp_path / "kinds", directory, FAMILY).items():
        member = Member(name, read(path, base), 1.0)
        deltas = member.artifact.delta.values()
        if any(delta.needs_weight for delta in deltas):
            refused.add(name)
            with pytest.raises(
                ArtifactError, match=f"{name} can't be composed: .* depends on the base's weights"
            ):
                compose([member], Recipe("linear"), base)
        elif all(delta.bias is None for delta in deltas):
            assert compose([member], Recipe("linear"), base).modules
    assert refused >= NEED_WEIGHTS[kinds]
    assert not refused & DO_NOT[kinds]
