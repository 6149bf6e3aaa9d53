"""Kinds with a dense, sparse, orthogonal or block-wise change, merged into the base: as PEFT computes."""

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
from manylora.adapters.merge.compose import compose
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.recipe import Member, Recipe
from tests.support.adapter_set import prompt_of
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # of PEFT's FRoD
]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([prompt_of(20)]), use_cache=False).logits[0].float()
    return found


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", ["llama-untied-bias", "gpt2"])
def test_what_is_merged_answers_like_peft(tmp_path: Path, family: str) -> None:
    """RoAd, GLoRA and BEFT change biases as well."""
    directory = tiny_model(tmp_path / "model", family)
    stored = StoredModel(directory)
    base = stored.describe("base")
    for name, path in write_matrix_kinds(tmp_path / "kinds", directory, family).items():
        merged = tmp_path / "merged" / name
        export(plan_export(stored, "base", [Member(name, read(path, base), 1.0)]), merged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on biases and projections
            expected = logits(PeftModel.from_pretrained(loaded(directory), path).eval())
        assert_logits_match(logits(loaded(merged)), expected, name=name)


def test_those_that_need_the_weight_do_not_compose(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model", "llama-untied-bias")
    base = StoredModel(directory).describe("base")
    refused = []
    for name, path in write_matrix_kinds(tmp_path / "kinds", directory, "llama-untied-bias").items():
        member = Member(name, read(path, base), 1.0)
        if any(delta.needs_weight for delta in member.artifact.delta.values()):
            refused.append(name)
            with pytest.raises(ArtifactError, match="depends on the base's weights"):
                compose([member], Recipe("linear"), base)
        else:
            assert compose([member], Recipe("linear"), base).modules
    assert {"oft", "road", "glora"} <= set(refused)
    assert not {"fourierft-few", "shira", "beft"} & set(refused)
