"""How much memory jobs that train at once take: the base's once, whatever their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.sweep, pytest.mark.timeout(900)]

AT_MOST = 1.5  # times that of one, of two
SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def peak(model: Path, directory: Path, jobs: int) -> int:
    directory.mkdir()
    command = [sys.executable, "-m", "tests.support.training_memory", str(model), str(directory), str(jobs)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(told.split()[-1])


def test_two_at_once_take_less_than_half_as_much_again(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", **SHAPE)
    weights = (model / "model.safetensors").stat().st_size
    assert weights > 400e6  # else what the libraries take hides it
    one, two = (peak(model, tmp_path / str(jobs), jobs) for jobs in (1, 2))
    print(f"weights {weights / 1e6:.0f} MB, one job {one / 1e6:.0f} MB, two {two / 1e6:.0f} MB")
    assert one > weights
    assert two < AT_MOST * one
    assert two - one < weights / 2
