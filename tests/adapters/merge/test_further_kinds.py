"""Further kinds, composed into LoRA and merged into the base."""

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
from tests.support.further_kinds import write_further_kinds
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), "llama-untied-bias")


@pytest.fixture(scope="module")
def paths(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_further_kinds(tmp_path_factory.mktemp("kinds"), directory, "llama-untied-bias")


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([prompt_of(20)]), use_cache=False).logits[0].float()
    return found


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_what_is_merged_answers_like_peft(directory: Path, paths: dict[str, Path], tmp_path: Path) -> None:
    stored = StoredModel(directory)
    base = stored.describe("base")
    for name, path in paths.items():
        export(plan_export(stored, "base", [Member(name, read(path, base), 1.0)]), tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on biases and projections
            expected = logits(PeftModel.from_pretrained(loaded(directory), path).eval())
        assert_logits_match(logits(loaded(tmp_path / name)), expected, name=name)


def test_those_that_do_not_need_the_weight_compose_into_lora(
    directory: Path, paths: dict[str, Path], tmp_path: Path
) -> None:
    base = StoredModel(directory).describe("base")
    for name in ("gralora", "loha", "lokr-both", "miss-mini", "tinylora-tied", "unilora-long", "vblora-top"):
        member = Member(name, read(paths[name], base), 1.0)
        save(compose([member], Recipe("linear"), base), tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = logits(PeftModel.from_pretrained(loaded(directory), paths[name]).eval())
            found = logits(PeftModel.from_pretrained(loaded(directory), tmp_path / name).eval())
        assert_logits_match(found, expected, name=name)


@pytest.mark.parametrize("name", ["hra-many", "hra-orthogonal", "miss-bat"])
def test_those_that_need_it_do_not(directory: Path, paths: dict[str, Path], name: str) -> None:
    base = StoredModel(directory).describe("base")
    with pytest.raises(ArtifactError, match=f"{name} can't be composed: .* depends on the base's weights"):
        compose([Member(name, read(paths[name], base), 1.0)], Recipe("linear"), base)
