"""Whatever the files hold: an artifact or an ArtifactError, and nothing else."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.faults import MAX_FAULTS, MAX_SENTENCE
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.kinds.table import OPTIONS
from tests.support.adapters import lora_config, lora_tensors, write_adapter, write_artifact
from tests.support.artifact_cases import (
    BASE,
    LIMITS,
    Q_A,
    Q_B,
    valid,
    write_raw,
)
from tests.support.fuzzing import FUZZ, json_values

pytestmark = pytest.mark.slow


def read_or_refuse(directory: Path) -> Artifact | None:
    """The property of all fuzzing: an artifact or an ArtifactError, and nothing else."""
    refusal = None
    try:
        return read_artifact(directory, BASE, LIMITS)
    except ArtifactError as error:
        refusal = error
    str(refusal).encode()
    assert refusal.faults
    assert len(str(refusal)) < (MAX_FAULTS + 1) * (MAX_SENTENCE + 4)
    return None


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from([o.key for options in OPTIONS.values() for o in options]) | st.text(max_size=5),
        json_values,
        max_size=5,
    )
)
def test_any_config(tmp_path: Path, changes: dict[str, Any]) -> None:
    config, tensors = valid()
    read_or_refuse(write_artifact(tmp_path, config | changes, tensors))


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    write_adapter(tmp_path, BASE)
    (tmp_path / WEIGHTS_NAME).write_bytes(content)
    assert read_or_refuse(tmp_path) is None
    (tmp_path / CONFIG_NAME).write_bytes(content)
    assert read_or_refuse(tmp_path) is None


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_files(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    write_adapter(tmp_path, BASE)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        raw = bytearray((tmp_path / name).read_bytes())
        for position, value in flips:
            raw[position % len(raw)] = value
        (tmp_path / name).write_bytes(raw)
        read_or_refuse(tmp_path)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from([Q_A, Q_B, "__metadata__", "x"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F64", "X"]) | json_values,
                "shape": st.lists(st.integers(-2, 10), max_size=3) | json_values,
                "data_offsets": st.lists(st.integers(-2, 300), max_size=3) | json_values,
            }
        )
        | json_values,
        max_size=4,
    ),
    st.binary(max_size=300),
)
def test_any_header(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    write_artifact(tmp_path, lora_config(targets=["0.q_proj"]), {})
    read_or_refuse(write_raw(tmp_path, header, data))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.data())
def test_any_value_that_is_not_finite_is_found(
    tmp_path: Path, dtype: torch.dtype, data: st.DataObject
) -> None:
    config = lora_config(rank=4)
    tensors = lora_tensors(BASE, config, dtype=dtype)
    key = data.draw(st.sampled_from(sorted(tensors)))
    extremes = [
        torch.finfo(dtype).max,
        -torch.finfo(dtype).max,
        torch.finfo(dtype).tiny,
        -0.0,
        math.nan,
        math.inf,
    ]
    value = data.draw(st.sampled_from([*extremes, -math.inf]))
    index = data.draw(st.integers(0, tensors[key].numel() - 1))
    changed = copy.deepcopy(tensors)
    changed[key].view(-1)[index] = value
    artifact = read_or_refuse(write_artifact(tmp_path, config, changed))
    assert (artifact is not None) == math.isfinite(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": [f"m{index}_proj" for index in range(60_000)]},
        {"rank_pattern": {f"a.{index}": 1 for index in range(60_000)}},
        {"alpha_pattern": {f"{index}.*": 1 for index in range(60_000)}},
        {"layers_to_transform": list(range(100_000))},
        {"new": list(range(100_000))},
    ],
)
def test_a_config_of_a_megabyte_takes_seconds_at_most(tmp_path: Path, changes: dict[str, Any]) -> None:
    config, tensors = valid()
    started = monotonic()
    read_or_refuse(write_artifact(tmp_path, config | changes, tensors))
    assert monotonic() - started < 10
