"""Every kind that the trainer trains, on an example's data: passes the gate and is better than the base.

By each method's own rate and sizes. In make test-all only: all of them take tens of minutes of a core.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.methods import train_by, write_data
from manylora.adapters.training.methods import FULL, METHODS

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.sweep]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_data(directory)
    return directory


@pytest.mark.parametrize("method", [name for name in METHODS if name != FULL])
def test_held_out_rows_become_likelier(method: str, real_model_dir: Path, data: Path, tmp_path: Path) -> None:
    result = train_by(method, str(real_model_dir), data, tmp_path / "out")
    assert result.adapter.is_dir()
    assert result.baseline.adapter["loss"] < result.baseline.base["loss"]
    assert not result.warnings
