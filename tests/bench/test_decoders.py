"""The turns of bench.decoders on small models of its families."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.decoders.models import MODELS, write_model
from bench.decoders.turns import show, speeds, summary
from bench.steps import Shape, Workbench

SHAPES = {"2 streams": Shape(2, 40), "2 adapters": Shape(2, 40, rank=4, distinct=2)}


@pytest.mark.parametrize("name", MODELS)
def test_two_decoders_in_turns(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_model(tmp_path, name, num_hidden_layers=1, vocab_size=512, hidden_size=64) > 0
    shapes = list(SHAPES.values())
    benches = {
        "fused": Workbench(tmp_path, shapes, device="cpu", kernels="pytorch"),
        "generic": Workbench(tmp_path, shapes, device="cpu", kernels="auto", generic=True),
    }
    found = speeds(benches, SHAPES, repeat=2, seconds=0)
    assert all(len(own) == 2 and min(own) > 0 for by in found.values() for own in by.values())
    rows = summary(found)
    assert {one["generic"]["ratio"] for one in rows.values()} == {1.0}
    show(name, rows)
    assert len(capsys.readouterr().out.splitlines()) >= 1 + len(SHAPES)


def test_ratios_are_of_the_same_repetition() -> None:
    found = {"1": {"a": [10.0, 40.0, 90.0], "b": [5.0, 10.0, 30.0]}}
    assert summary(found)["1"]["a"] == {"tokens_per_second": 40.0, "ratio": 3.0}
