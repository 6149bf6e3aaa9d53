"""What was trained on a model without its head names its modules without ``model.``: of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.foreign.convert import convert
from tests.support.adapters import write_artifact
from tests.support.artifact_cases import LIMITS
from tests.support.kind_cases import BASE
from tests.support.matrix_cases import VALID, config_of, tensors_of

MASKS = {
    "0.q_proj": [True, False, True],
    "0.up_proj": [False, False, True],
    "1.q_proj": [True, True, True],
    "1.up_proj": [True, True, False],
}


def headless(key: str) -> str:
    return key.replace("base_model.model.model.", "base_model.model.")


@pytest.mark.parametrize("kind", VALID)
def test_every_kind_is_read(kind: str, tmp_path: Path) -> None:
    config = config_of(kind) | {"task_type": "FEATURE_EXTRACTION"}
    tensors = tensors_of(config)
    write_artifact(tmp_path, config, {headless(key): tensor for key, tensor in tensors.items()})
    found = convert(tmp_path, BASE, LIMITS)
    assert found is not None
    assert found.canonical.config == config
    assert found.canonical.tensors.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in found.canonical.tensors.items())


@pytest.mark.parametrize("ending", [".lora_E", ".lora_E.default"])
def test_ranks_that_adalora_kept(ending: str, tmp_path: Path) -> None:
    """Its masks stand under names of tensors, which move along."""
    config = {
        "peft_type": "ADALORA",
        "target_modules": ["q_proj", "up_proj"],
        "init_r": 3,
        "rank_pattern": {f"layers.{name}{ending}": mask for name, mask in MASKS.items()},
    }
    tensors = {}
    for name, mask in MASKS.items():
        module, rank = BASE.modules[f"model.layers.{name}"], sum(mask)
        prefix = f"base_model.model.layers.{name}"
        tensors[f"{prefix}.lora_A"] = torch.rand(rank, module.in_features)
        tensors[f"{prefix}.lora_B"] = torch.rand(module.out_features, rank)
        tensors[f"{prefix}.lora_E"] = torch.rand(rank, 1)
    write_artifact(tmp_path / "in", config, tensors)
    found = convert(tmp_path / "in", BASE, LIMITS)
    assert found is not None
    write_artifact(tmp_path / "out", found.canonical.config, dict(found.canonical.tensors))
    delta = read_artifact(tmp_path / "out", BASE, LIMITS).delta
    kept = {f"model.layers.{name}": sum(mask) for name, mask in MASKS.items()}
    assert {name: each.rank for name, each in delta.items()} == kept


def test_integers_where_none_belong_are_refused(tmp_path: Path) -> None:
    config = config_of("SHIRA")
    tensors = {headless(key): tensor for key, tensor in tensors_of(config).items()}
    key = next(key for key in tensors if key.endswith("shira_weight"))
    tensors[key] = tensors[key].to(torch.int64)
    write_artifact(tmp_path / "in", config, tensors)
    found = convert(tmp_path / "in", BASE, LIMITS)
    assert found is not None
    write_artifact(tmp_path / "out", found.canonical.config, dict(found.canonical.tensors))
    with pytest.raises(ArtifactError, match="I64"):
        read_artifact(tmp_path / "out", BASE, LIMITS)
