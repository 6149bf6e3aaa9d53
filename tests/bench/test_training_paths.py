"""The benchmark of both paths of the trainer runs, and measures what it says."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.training_paths import PATHS, beside, measure, resident_peak
from tests.support.tiny_models import tiny_model
from tests.support.training_runs import config


@pytest.mark.parametrize(
    "changes", [{"use_dora": True}, {"quantization": "nf4"}], ids=lambda c: next(iter(c))
)
def test_both_paths_train_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", intermediate_size=128)
    settings = config(base, tmp_path, max_steps=3, eval_split=0, **changes)
    found = beside(settings, 1, Console(quiet=True), measure)
    assert found["largest_loss_difference"] < 1e-3
    assert all(found[path]["tokens_per_second"] > 0 for path in PATHS)
    assert found["speed_ratio"] > 0


def test_a_run_without_a_decoder_is_not_measured_as_one(tmp_path: Path) -> None:
    settings = config(tiny_model(tmp_path / "base", "gpt2"), tmp_path, max_steps=2, eval_split=0)
    with pytest.raises(SystemExit, match="no fused decoder"):
        measure(settings, "fused")


def test_the_peak_is_that_since_it_was_reset() -> None:
    before = resident_peak(reset=True)
    with mmap.mmap(-1, 64 << 20) as block:  # given back at once, whatever allocator is in use
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert resident_peak() >= before + 60
    assert resident_peak(reset=True) < before + 30
