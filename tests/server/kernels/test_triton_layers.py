"""The fused layers against the PyTorch layers: every feature of a family, every kind of adapter they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manylora.server.kernels.inputs import EmbeddedRows, StepInputs
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.weights import DecoderWeights
from tests.support.kernel_cases import (
    PAIRS,
    Batcher,
    Mix,
    Pages,
    Sequence_,
    Shape,
    in_float32,
    on,
    random_decoder,
    relative_error,
    rounding_slack,
)

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from triton.runtime.interpreter import InterpretedFunction

from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.layers.fused import FusedLayers
from manylora.server.kernels.cuda.layers.row_mixes import Takes
from manylora.server.kernels.cuda.splitting import part_of

BLOCKS = 24
SMALL = Shape(hidden=40, intermediate=56, heads=2, kv_heads=1, head_dim=16, vocab=50)
GAINS = ("g", "gc", "c", "g", "gc", "", "gci")  # of q, k, v, o, gate, up, down: down has input gains
FAMILIES = {
    "llama": SMALL,
    "biases and head norms": replace(SMALL, bias=True, qk_norm=True),
    "norms behind, gelu, offset, caps": replace(
        SMALL, post_norms=True, gelu=True, norm_offset=1.0, windows=(None, 9), score_cap=5.0, logit_cap=8.0
    ),
    "stacked, partly turned": replace(SMALL, stacked=True, turned=8, residual_scale=0.7),
    "a layer without positions": replace(
        SMALL, ropes=(0, None), head_dim=24, embedding_scale=3.0, logit_scale=0.5
    ),
}


class Run:
    """Sequences that both compute side by side."""

    def __init__(
        self, device: torch.device, weights: DecoderWeights, mixes: tuple[Mix, ...], pages: Pages
    ) -> None:
        pool = pages.pool.to(weights.embedding.dtype)
        self.triton = TritonStep(on(device, weights), pool.to(device), BLOCKS)
        self.reference = ReferenceStep(weights, pool, BLOCKS)
        batcher = Batcher(BLOCKS, weights.embedding.shape[0], first=1)
        self.sequences = [batcher.sequence(30, mix) for mix in mixes]

    def inputs(self, *counts: int) -> StepInputs:
        """One step that computes so many tokens of the sequences in turn."""
        return Batcher.step([(s, n) for s, n in zip(self.sequences, counts, strict=True) if n])

    def compare(self, *counts: int) -> None:
        inputs = self.inputs(*counts)
        expected = self.reference.step(inputs)
        torch.testing.assert_close(self.triton.step(inputs).cpu(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [name if i in (1, 2) else pytest.param(name, marks=pytest.mark.sweep) for i, name in enumerate(FAMILIES)],
)
def test_every_family(device: torch.device, family: str) -> None:
    """A prompt and rows that decode, with an adapter that has everything and without one."""
    weights = in_float32(random_decoder(FAMILIES[family]))
    assert FusedLayers.unsupported(weights) is None
    pages = Pages(weights)
    mix = ((pages.random((0, 18, 3, 0, 1, 0, 4), 2), 0.5), (pages.random(2, 4, vectors=GAINS), -0.7))
    run = Run(device, weights, (mix, ()), pages)
    run.compare(5, 2)
    run.compare(1, 1)


@pytest.mark.sweep
@pytest.mark.slow
def test_prompts_beside_rows_that_decode(device: torch.device) -> None:
    """With no adapter, rank pages, vectors, and a mix of all; prompts of more than one tile."""
    weights = in_float32(random_decoder(SMALL))
    pages = Pages(weights)
    plain, gained = pages.random(5, 1), pages.random(2, 4, vectors=GAINS)
    mixes: tuple[Mix, ...] = ((), ((plain, 1.0),), ((gained, 1.0),), ((gained, -0.7), (plain, 2.0)))
    run = Run(device, weights, mixes, pages)
    run.compare(3, 17, 2, 4)
    run.compare(2, 1, 1, 3)


@pytest.mark.slow
@pytest.mark.sweep
def test_in_bf16_it_errs_no_more_than_pytorch(device: torch.device) -> None:
    weights = random_decoder(replace(SMALL, hidden=160, intermediate=200, qk_norm=True))
    pages = Pages(weights)
    mixes: tuple[Mix, ...] = ((), ((pages.random(5, 1), 1.0),), ((pages.random(2, 4, vectors=GAINS), 1.0),))
    run = Run(device, weights, mixes, pages)
    exact = ReferenceStep(in_float32(weights), pages.pool.float(), BLOCKS)
    for counts in ((2, 17, 3), (1, 1, 1)):
        inputs = run.inputs(*counts)
        expected = exact.step(inputs)
        rounded = relative_error(run.reference.step(inputs), expected)
        assert relative_error(run.triton.step(inputs).cpu(), expected) < rounding_slack() * rounded


@pytest.mark.slow
def test_rows_whose_embeddings_are_given_and_hidden_states_wanted(device: torch.device) -> None:
    """As adapters with vocabularies of their own need: prompts and decode rows."""
    weights = in_float32(random_decoder(SMALL))
    pages = Pages(weights)
    run = Run(device, weights, ((), ((pages.random(3, 1), 1.0),)), pages)
    for counts in ((4, 2), (1, 1)):
        inputs = run.inputs(*counts)
        rows = np.array([1])
        given = EmbeddedRows(rows, torch.randn(1, SMALL.hidden).to(device))
        hidden = [torch.empty(2, SMALL.hidden, device=where) for where in (device, "cpu")]
        ours = run.triton.step(replace(inputs, embedded=given, hidden=hidden[0]))
        here = EmbeddedRows(rows, given.values.cpu())
        expected = run.reference.step(replace(inputs, embedded=here, hidden=hidden[1]))
        torch.testing.assert_close(ours.cpu(), expected, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(hidden[0].cpu(), hidden[1], atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_rows_on_merged_copies(device: torch.device) -> None:
    """Other matrices and another norm, with an adapter on top."""
    weights = in_float32(random_decoder(SMALL))
    pages = Pages(weights)
    run = Run(device, weights, ((), ((pages.random(3, 1), 1.0),)), pages)
    merged = [step.merged() for step in (run.triton, run.reference)]
    generator = torch.Generator().manual_seed(3)
    for group in (weights.groups()[1], weights.groups()[4], weights.groups()[-2]):
        made = [torch.randn(weights.weight(m).shape, generator=generator) * 0.2 for m in group]
        for copy, where in zip(merged, (device, torch.device("cpu")), strict=True):
            copy.put(group, [one.to(where) for one in made], [None] * len(group))
    for counts in ((3, 2), (1, 1)):
        inputs = run.inputs(*counts)
        ours = run.triton.step(replace(inputs, merged=merged[0])).cpu()
        expected = run.reference.step(replace(inputs, merged=merged[1]))
        torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(expected, run.reference.step(inputs), atol=0.1)


def test_what_is_taken() -> None:
    weights = in_float32(random_decoder(SMALL))
    pages = Pages(weights)
    takes = Takes(weights)

    def of(*mix: tuple[Any, float]) -> Any:
        return Batcher.step([(Sequence_([0], [1], mix), 1)]).lora

    plain, gained = pages.random(3, 1), pages.random(2, 4, vectors=GAINS)
    elsewhere, paired = pages.random(1, 5, vectors=("", "", "", "i")), pages.random(1, 6, vectors=PAIRS)
    for taken, scaled, mix in (
        (True, False, (plain,)),
        (True, True, (plain, gained)),
        (False, True, (elsewhere,)),
        (False, False, (plain, paired)),
    ):
        lora = of(*((adapter, 1.0) for adapter in mix))
        assert (takes.all_of(lora), takes.scaled(lora)) == (taken, scaled)
    assert takes.all_of(None)


def test_decoders_that_run_in_pytorch_layers() -> None:
    for change in (
        {"experts": 4},
        {"pre_norms": False, "post_norms": True},
        {"qk_norm": True, "joint_qk_norm": True},
    ):
        assert FusedLayers.unsupported(random_decoder(replace(SMALL, **change))) is not None


class Launches(TorchDispatchMode):
    """Counts what is launched on a device, and refuses what waits for it; kernels of our own are not run."""

    WAITS = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "is_nonzero", "equal", "bincount")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        assert not name.startswith(self.WAITS), name
        result = func(*args, **(kwargs or {}))
        memory = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        first = result[0] if isinstance(result, list | tuple) else result
        view = not func._schema.is_mutable and first.untyped_storage().data_ptr() in memory
        if not view and "empty" not in name:
            self.calls.append(name)
        return result

    def launch(self, kernel: Any, _: tuple[int, ...]) -> Callable[..., None]:
        """In place of the interpreter's."""
        return lambda *_, **__: self.calls.append(kernel.fn.__name__)


def launches(monkeypatch: pytest.MonkeyPatch, layers: int, counts: tuple[int, ...], gains: bool) -> list[str]:
    weights = in_float32(random_decoder(replace(SMALL, layers=layers, qk_norm=True, bias=True)))
    pages = Pages(weights)
    adapter = pages.random(3, 1, vectors=("g", "gc", "c", "g", "gc", "", "g") if gains else None)
    step = TritonStep(weights, pages.pool.float(), BLOCKS)
    batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
    inputs = Batcher.step([(batcher.sequence(n, ((adapter, 1.0),)), n) for n in counts])
    with Launches() as seen, monkeypatch.context() as patch:
        launch = seen.launch
        patch.setattr(InterpretedFunction, "__getitem__", lambda kernel, grid: launch(kernel, grid))  # noqa: PLW0108 - bound to kernels
        step.step(inputs)
    calls: list[str] = seen.calls
    return calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts in the interpreter's place")
@pytest.mark.parametrize("gains", [False, True], ids=["rank pages", "gains and constants"])
def test_launches_of_a_layer(monkeypatch: pytest.MonkeyPatch, gains: bool) -> None:
    """Twelve where every row decodes; of chunks of prompts, which run beside replayed rows, at most 20."""
    per_layer = {}
    for counts in ((1, 1, 1), (7, 20)):
        two, three = (launches(monkeypatch, layers, counts, gains) for layers in (2, 3))
        per_layer[counts] = len(three) - len(two)
        assert len(two) - 2 * per_layer[counts] < 40  # what a step has besides
    assert per_layer == {(1, 1, 1): 12, (7, 20): 17}


def test_a_part_of_a_step() -> None:
    weights = random_decoder(SMALL)
    pages = Pages(weights)
    a, b, c = (pages.random(1, seed) for seed in range(3))
    mixes: tuple[Mix, ...] = (((a, 1.0), (b, 2.0)), (), ((c, 3.0),), ((b, 4.0),))
    batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
    sequences = [batcher.sequence(20, mix) for mix in mixes]
    whole = replace(
        Batcher.step([(s, n) for s, n in zip(sequences, (1, 5, 3, 1), strict=True)]),
        logits_rows=np.array([0, 5, 9]),
    )
    part = part_of(whole, np.array([2, 3]))
    assert part.logits.tolist() == [2]
    inputs = part.inputs
    assert inputs.query_start.tolist() == [0, 3, 4]
    assert inputs.logits_rows.tolist() == [3]
    for name in ("token_ids", "positions", "slots"):
        assert np.array_equal(getattr(inputs, name), getattr(whole, name)[[6, 7, 8, 9]])
    assert np.array_equal(inputs.context, whole.context[2:])
    assert np.array_equal(inputs.block_tables, whole.block_tables[2:])
    assert inputs.lora is not None
    assert [inputs.lora.adapters[i] for i in inputs.lora.adapter] == [c, b]
    assert inputs.lora.weight.tolist() == [3.0, 4.0]
    assert inputs.lora.start.tolist() == [0, 1, 2]
    assert part_of(whole, np.array([1])).inputs.lora is None
