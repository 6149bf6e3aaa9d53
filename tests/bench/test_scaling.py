"""The scaling bench: what it counts, the law it fits, and a run on a tiny model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from bench.scaling import DATASHEETS, SWEEPS, TERMS, features, fit, measure, on_paper, others, predicted
from bench.scaling_plot import draw
from bench.steps import Machine, Shape, Work, Workbench
from tests.support.tiny_models import tiny_model

BEST = Machine(bytes_per_second=1e9, flops_per_second=1e10)


def short(shape: Shape) -> Shape:
    return replace(shape, context=64, rows=min(shape.rows, 64))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    shapes = [
        replace(shape, context=64, rows=min(shape.rows, 64)) for sweep in SWEEPS.values() for shape in sweep
    ]
    model = tiny_model(tmp_path_factory.mktemp("model"))
    return Workbench(
        model, [*shapes, Shape(2, context=40, distinct=1, rows=24)], device="cpu", kernels="pytorch"
    )


def test_what_a_step_moves_and_computes(bench: Workbench) -> None:
    base, adapted = bench.work(Shape(4, context=64)), bench.work(Shape(4, context=64, rank=8, distinct=2))
    linear = [module for module in bench.decoder.modules if module.linear]
    assert base.adapter_bytes == base.adapter_flops == 0
    assert adapted.adapter_bytes == 2 * 2 * sum(8 * (m.in_features + m.out_features) for m in linear)
    assert adapted.adapter_flops == 2 * adapted.adapter_bytes, "bytes of two adapters, flops of four rows"
    assert adapted.kv_bytes == base.kv_bytes == bench.decoder.kv_bytes_per_block * 64 / 16 * 4
    assert base.weight_flops == 4 * base.weight_bytes, "four rows; a weight is two bytes, and two operations"
    prefill = bench.work(Shape(4, context=64, rows=24))
    assert prefill.rows == 96
    assert base.attention_flops == 0.0
    pairs = 4 * sum(range(64 - 23, 64 + 1))  # each of the last 24 tokens meets those up to itself
    assert prefill.attention_flops == 2 * bench.work(Shape(2, context=64, rows=24)).attention_flops
    assert prefill.attention_flops % pairs == 0
    assert base.weight_flops < prefill.weight_flops < 24 * base.weight_flops, "the head runs once a sequence"


def test_the_roofline_is_the_longer_of_two_times() -> None:
    work = Work(
        weight_bytes=3e6,
        weight_flops=1e7,
        kv_bytes=1e6,
        adapter_bytes=1e6,
        adapter_flops=1e6,
        rows=1,
        sequences=1,
    )
    assert work.least_seconds(BEST) == pytest.approx(5e-3)
    assert work.least_seconds(replace(BEST, flops_per_second=1e9)) == pytest.approx(11e-3)


def test_a_law_is_found_again() -> None:
    works = [
        Work(
            1e6,
            1e5 * rows * batch * batch,
            1e4 * batch * context,
            3e4 * distinct,
            1e5 * batch,
            batch * rows,
            batch,
            1e6 * batch * rows**2 if rows > 1 else 0.0,
        )
        for batch in (1, 4, 16, 64)
        for context in (10, 100)
        for distinct in (0, 1, 4)
        for rows in (1, 64, 100)
    ]
    rows = [features(work, BEST) for work in works]
    law = [1.2, 1.5, 2.0, 3.0, 1e-5, 2e-5, 3e-4]
    found = fit(rows, [predicted(row, law) for row in rows])
    assert found == pytest.approx(law, rel=1e-6)
    assert (
        min(fit(rows, [max(1e-6, predicted(row, [1.2, 1.5, 2.0, 0.0, -1e-5, 0.0, 0.0])) for row in rows]))
        >= 0
    )


@pytest.mark.slow
def test_others_compute_meanwhile(tiny_llama: Path, tmp_path: Path) -> None:
    def beside(base: Path) -> AbstractContextManager[None]:
        return others(1, base, [Shape(2, context=40)], device="cpu", kernels="pytorch")

    with beside(tiny_llama):
        (process,) = active_children()
    assert (process.exitcode, active_children()) == (0, [])
    with pytest.raises(SystemExit, match="has ended"), beside(tmp_path):
        pytest.fail("nothing computes")


def test_a_run_and_its_picture(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: [short(shape) for shape in sweep[:2]] for name, sweep in SWEEPS.items()}
    monkeypatch.setattr("bench.scaling.SWEEPS", few)
    found = measure(bench, BEST, repeat=1)
    assert set(found["law"]) == set(TERMS)
    shapes = {shape for sweep in few.values() for shape in sweep}
    assert len(found["points"]) == len(shapes)
    assert all(point["seconds"] > 0 and point["roofline"] > 0 for point in found["points"])
    assert {row["gpu"] for row in found["on_paper"]} == set(DATASHEETS)
    draw(found["points"], few, tmp_path / "law.png")
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")


def test_steps_are_what_their_shape_says(bench: Workbench) -> None:
    shape = Shape(2, context=40, distinct=1, rows=24)
    inputs = bench.inputs(shape)
    assert inputs.positions.tolist() == [*range(16, 40), *range(16, 40)]
    assert inputs.lora is not None
    assert len(inputs.lora.adapters) == 1
    assert len(set(inputs.slots.tolist())) == 48
    assert bench.inputs(replace(shape, distinct=0)).lora is None
    assert torch.isfinite(bench.decoder.step(inputs)).all()


def test_on_paper_a_machine_at_its_best_takes_the_roofline() -> None:
    rows = {(row["gpu"], row["batch"]): row for row in on_paper([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])}
    one = rows["A100 80GB SXM", 1]
    assert one["base"] == pytest.approx(2 * 6.61e9 / 2.039e12, rel=0.03), "weights of 13 GB, read once"
    assert one["base"] < one["all_distinct"] < 1.05 * one["base"]
