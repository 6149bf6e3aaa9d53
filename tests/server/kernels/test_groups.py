"""Rows that decode with one mix share the reading of its pages, and keep the bits they have alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.kernels.inputs import LoraInputs, StepInputs, lora_inputs
from manylora.server.kernels.reference.lora import split_rows
from tests.support.kernel_cases import Batcher, Mix, Pages, Shape, in_type, on, random_decoder

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.lora import GROUP_ROWS, TILE_ROWS, groups_of
from manylora.server.kernels.cuda.splitting import part_of

SMALL = Shape(hidden=40, intermediate=56, heads=2, kv_heads=1, head_dim=16, vocab=50, layers=1, qk_norm=True)
WEIGHTS = random_decoder(SMALL)
PAGES = Pages(WEIGHTS)
A, B = PAGES.random(5, 1), PAGES.random((0, 18, 3, 0, 1, 0, 4), 2)
GAINED = PAGES.random(2, 3, vectors=("g", "gc", "c", "g", "gc", "", "gci"))
ONE: Mix = ((A, 1.0),)
MIXED: Mix = ((A, 0.5), (B, -0.5))
SCALED: Mix = ((GAINED, 1.0), (A, 0.25))
BLOCKS = 64


def of(*mixes: Mix) -> LoraInputs:
    found = lora_inputs(mixes)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("mixes", "rows", "groups"),
    [
        ([ONE], 1, [(0, 1, 0)]),
        ([ONE], 3, [(0, 1, 0), (1, 2, 1), (2, 3, 2)]),  # those that fill up have no mix
        ([ONE, ONE, (), (), MIXED], 6, [(0, 2, 0), (4, 5, 4), (2, 3, 2), (3, 4, 3), (5, 6, 5), (0, 0, 0)]),
        ([ONE] * 9, 9, [(0, 8, 0), (8, 9, 0), *[(0, 0, 0)] * 7]),
        ([((A, 1.0),), ((A, 0.5),), ((A, 0.5), (B, 1.0))], 3, [(0, 1, 0), (1, 2, 1), (2, 3, 2)]),
    ],
)
def test_groups(mixes: list[Mix], rows: int, groups: list[tuple[int, int, int]]) -> None:
    assert groups_of(of(*mixes), rows).tolist() == [list(group) for group in groups]


def test_pages_of_an_adapter_are_read_once_for_a_group() -> None:
    """How many programs read them, of 128 rows: those that have rows."""
    for mixes, reading in (([ONE] * 128, 16), ([ONE] * 64 + [MIXED] * 64, 16), ([()] * 100 + [ONE] * 28, 4)):
        lora = of(*mixes)
        groups = groups_of(lora, 128)
        mixed = groups[np.diff(lora.start)[groups[:, 2]] > 0]
        assert (mixed[:, 0] < mixed[:, 1]).sum() == reading
    assert GROUP_ROWS <= TILE_ROWS, "groups go through the kernels of tiles, too"


@given(st.lists(st.sampled_from([(), ONE, MIXED, ((A, 0.5),), ((B, 1.0),), SCALED]), max_size=20))
def test_runs_of_equal_mixes(mixes: Sequence[Mix]) -> None:
    """As comparing each sequence with the one before finds them."""
    if not any(mixes):
        return
    expected: list[list[int]] = []
    for i, mix in enumerate(mixes):
        if i and mix == mixes[i - 1]:
            expected[-1][1] = 2 * i + 2
        else:
            expected.append([2 * i, 2 * i + 2, i])
    runs = [tuple(run) for run in expected if mixes[run[2]]]
    segments, loose = split_rows(of(*mixes), 2 * np.arange(len(mixes) + 1, dtype=np.int32), 4)
    assert segments == [run for run in runs if run[1] - run[0] >= 4]
    assert loose == [(row, run[2]) for run in runs for row in range(run[0], run[1]) if run[1] - run[0] < 4]


def row_by_row(product: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The library's product, which may sum otherwise for another number of rows."""
    return lambda x: torch.cat([product(row) for row in x.split(1)])


class Run:
    """Sequences of a decoder whose products don't depend on the number of rows."""

    def __init__(self, device: torch.device, dtype: torch.dtype, mixes: Sequence[Mix]) -> None:
        self.triton = TritonStep(on(device, in_type(dtype, WEIGHTS)), PAGES.pool.to(dtype).to(device), BLOCKS)
        for layer in self.triton.reference.layers:
            for name, product in layer.matrices.items():
                layer.matrices[name] = row_by_row(product)  # type: ignore[index]
        batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
        self.sequences = [batcher.sequence(3, mix) for mix in mixes]

    def inputs(self) -> StepInputs:
        return Batcher.step([(sequence, 1) for sequence in self.sequences])

    def hidden(self, inputs: StepInputs, *, replayed: bool) -> torch.Tensor:
        """What the head is applied to."""
        found = self.triton.reference.weights.embedding.new_empty(len(inputs.logits_rows), SMALL.hidden)
        (self.triton.step if replayed else self.triton.launched)(replace(inputs, hidden=found))
        return found


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["on tensor cores", "without"])
def test_a_row_has_the_same_bits_alone_in_a_group_and_beside_others(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Launched and replayed; the first row, and others, of each mix."""
    mixes: list[Mix] = [*[ONE] * 9, (), *[SCALED] * 2, *[MIXED] * 2]
    run = Run(device, dtype, mixes)
    run.hidden(run.inputs(), replayed=True)
    batch = run.inputs()
    together = run.hidden(batch, replayed=True)
    assert torch.equal(run.hidden(batch, replayed=False), together)
    assert torch.isfinite(together).all()
    for chosen in ([8], [11], [2, 9, 13]):
        part = part_of(batch, np.array(chosen)).inputs
        assert torch.equal(run.hidden(part, replayed=len(chosen) == 1), together[chosen])
