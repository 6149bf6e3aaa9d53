"""The benchmarks of the kernels themselves: their levels side by side, and int8 simulated."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import neighbour
from bench.int8_quality import Recipe, calibrate, compared, linears, log_probabilities, quantized, rounded
from bench.levels import measure, steps_of
from bench.sampling import KINDS, draws_of, logits_of, milliseconds
from bench.steps import Shape, Workbench
from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.reference import sampling
from manylora.server.model.loading.loader import load_model


def test_every_level_takes_the_same_steps(tiny_llama: Path) -> None:
    shapes = [Shape(2, context=40, distinct=2), Shape(1, context=32, rows=32)]
    bench = Workbench(tiny_llama, shapes, device="cpu", kernels="pytorch")
    steps = steps_of(bench, max_rows=32)
    inputs = [bench.inputs(shape) for shape in shapes]
    found = measure(steps, inputs, repeat=1)
    assert list(found) == [variant.name for variant in usable_variants()]
    assert all(len(own.ms) == 2 and min(own.ms + own.ratio) > 0 for own in found.values())
    assert next(iter(found.values())).ratio == [1, 1]
    assert list(steps_of(bench, max_rows=32, levels=["portable"])) == ["portable"]
    with pytest.raises(ValueError, match="can't run avx1024"):
        steps_of(bench, max_rows=32, levels=["avx1024"])
    logits = [step(inputs[1]) for step in steps.values()]
    assert all(torch.allclose(one, logits[0], atol=0.1) for one in logits)


def test_steps_are_timed_beside_neighbours_that_are_gone_afterwards(tiny_llama: Path) -> None:
    shapes = [Shape(2, context=40)]
    bench = Workbench(tiny_llama, shapes, device="cpu", kernels="pytorch")
    found = neighbour.measure(bench, [bench.inputs(shapes[0])], [0, 1], repeat=1)
    assert [len(own) for own in found] == [1, 1]
    with neighbour.neighbours(2) as running:
        assert [process.poll() for process in running] == [None, None]
    assert all(process.poll() is not None for process in running)


def test_groups_are_rounded_by_themselves() -> None:
    x = torch.tensor([[1.0, 0.3, 100.0, 30.0]])
    assert (rounded(x, None) - x).abs().max() > 0.2
    assert (rounded(x, 2)[:, :2] - x[:, :2]).abs().max() <= 0.5 / 127
    assert torch.equal(rounded(torch.zeros(1, 4), None), torch.zeros(1, 4))


@pytest.mark.parametrize("smooth", [None, 0.5])
def test_int8_is_near_bf16_and_leaves_the_model_as_it_was(tiny_llama: Path, smooth: float | None) -> None:
    model = load_model(tiny_llama, dtype="bf16", device="cpu", max_model_len=None).hf
    window = torch.arange(40)[None]
    exact = log_probabilities(model, window)
    before = linears(model)
    largest = calibrate(model, [window])
    recipe = Recipe("test", group=16, weight_group=16, smooth=smooth, keep=("lm_head",))
    with quantized(model, recipe, largest):
        assert list(linears(model)) == ["lm_head"]
        row = compared("test", model, [window], [exact])
    assert (row.positions, linears(model)) == (40, before)
    assert 0 < row.kl < 1e-2
    assert torch.equal(log_probabilities(model, window), exact)


def test_drawing_is_timed_in_turns(tiny_llama: Path) -> None:
    logits = logits_of(str(tiny_llama), rows=4)
    draws = {name: draws_of(logits, params, np.random.default_rng(0)) for name, params in KINDS.items()}
    calls = {name: partial(sampling.draw, own) for name, own in draws.items()}
    found = milliseconds(calls, repeat=2)
    assert found.keys() == KINDS.keys()
    assert all(time > 0 for time in found.values())
    assert draws["greedy"].temperature.max() == 0
    assert logits.shape[0] == 4
