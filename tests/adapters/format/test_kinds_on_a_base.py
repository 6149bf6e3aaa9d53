"""What only the base's weights can tell about an adapter; and configs of any content, of every kind."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.kinds.table import OPTIONS
from manylora.server.model.pages.pool import PagePool
from tests.support.adapters import write_artifact
from tests.support.artifact_cases import LIMITS
from tests.support.fuzzing import FUZZ, json_values
from tests.support.kind_cases import BASE, CONFIGS, fill, read, valid


class Weights:
    """A base whose weights are all ``value`` and whose biases are all 0.5."""

    def __init__(self, value: float) -> None:
        self._value = value

    def weight(self, module: int) -> torch.Tensor:
        described = MODULES[module]
        return torch.full((described.out_features, described.in_features), self._value)

    def bias(self, module: int) -> torch.Tensor | None:
        return torch.full((MODULES[module].out_features,), 0.5) if MODULES[module].bias else None


MODULES = (*BASE.modules.values(), *BASE.norms.values())


def pack(artifact: Artifact, value: float) -> None:
    pool = PagePool(MODULES, 1 << 20, torch.float32, torch.device("cpu"), Weights(value))
    pool.pack(artifact.digest, artifact.delta)


def test_magnitudes_of_rows_that_are_zero(tmp_path: Path) -> None:
    """W + BA is zero: there is no direction that a magnitude could stretch."""
    artifact = read(tmp_path, "dora", fill("0.q_proj.lora_B.weight", 0.0))
    pack(artifact, 1.0)
    with pytest.raises(ArtifactError, match=r"rows of W \+ BA are zero in 'model.layers.0.q_proj'"):
        pack(artifact, 0.0)


def test_a_dora_that_was_never_trained(tmp_path: Path) -> None:
    norms = {f"{p}_proj.lora_magnitude_vector": math.sqrt(8) for p in "qv"}
    fresh = read(tmp_path, "dora", fill("lora_B.weight", 0.0), *(fill(*item) for item in norms.items()))
    with pytest.raises(ArtifactError, match="would do nothing"):
        pack(fresh, 1.0)
    pack(read(tmp_path, "dora", *(fill(*item) for item in norms.items())), 1.0)


def test_biases_that_are_those_of_the_base(tmp_path: Path) -> None:
    same = (fill("lora_B.weight", 0.0), fill(".bias", 0.5))
    with pytest.raises(ArtifactError, match="would do nothing"):
        pack(read(tmp_path, "all", *same), 1.0)
    pack(read(tmp_path, "all", *same, fill("norm.bias", 0.6)), 1.0)


def config_changes(kind: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    keys = st.sampled_from([option.key for option in OPTIONS[CONFIGS[kind]["peft_type"]]])
    return st.tuples(st.just(kind), st.dictionaries(keys, json_values, max_size=4))


@pytest.mark.slow
@FUZZ
@given(st.sampled_from(sorted(CONFIGS)).flatmap(config_changes))
def test_any_config(tmp_path: Path, drawn: tuple[str, dict[str, Any]]) -> None:
    """An artifact or an ArtifactError, and nothing else."""
    kind, changes = drawn
    config, tensors = valid(kind)
    write_artifact(tmp_path, config | changes, tensors)
    with suppress(ArtifactError):
        pack(read_artifact(tmp_path, BASE, LIMITS), 1.0)
