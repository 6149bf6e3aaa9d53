"""An engine on the simulated device beside one on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manylora.server.model.loading.loader import LoadedModel
from tests.support.engine_harness import EngineHarness
from tests.support.simulated_device import DEVICE, OnDevice, put_on_device, simulated_cuda

Run = Callable[[EngineHarness], Any]


def placed(loaded: LoadedModel) -> LoadedModel:
    """The loaded model on the device."""
    put_on_device(loaded.hf)
    return replace(loaded, device=DEVICE)


def check(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """What ``run`` makes of an engine is the same on the CPU and on the device, where the weights are."""
    options = {"kernels": "pytorch", "max_batch_tokens": 48, **options}
    expected = run(EngineHarness(model, **options))
    with simulated_cuda(monkeypatch):
        harness = EngineHarness(model, placed=placed, **options)
        assert isinstance(harness.pool.data, OnDevice)
        assert isinstance(harness.decoder.weight(0), OnDevice)
        found = run(harness)
    assert expected == found
