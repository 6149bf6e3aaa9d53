"""The step with Triton kernels against the PyTorch step, and what lets its decode steps be replayed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.kernel_cases import (
    VECTORS,
    Batcher,
    Mix,
    Pages,
    Sequence_,
    Shape,
    in_float32,
    on,
    random_decoder,
)
from tests.support.launches import Trace

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda import attention
from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.layers import gate_kernels, head_kernels, norm_kernels
from manylora.server.kernels.cuda.layers.row_mixes import Takes
from manylora.server.kernels.cuda.replay.buckets import MAX_ROWS, Bucket
from manylora.server.kernels.cuda.replay.decode import bucket_of as bucket_for_adapters
from manylora.server.kernels.cuda.replay.mix_buffers import MAX_RANK
from manylora.server.kernels.cuda.replay.replayed import Variant

BLOCKS = 64
WEIGHTS = in_float32(
    random_decoder(
        Shape(hidden=48, intermediate=72, heads=2, kv_heads=1, head_dim=16, qk_norm=True, windows=(None, 20))
    )
)
PAGES = Pages(WEIGHTS)
A, B, C = PAGES.random(4, 1), PAGES.random((9, 0, 3, 16, 1, 0, 20), 2), PAGES.random(33, 3)
SCALED = PAGES.random(4, 4, vectors=VECTORS)  # inputs of products that the layers have no gains for, too
GAINED = PAGES.random(4, 7, vectors=("g", "gc", "c", "g", "gc", "", "gci"))
ONLY_GAINS = PAGES.random(0, 8, vectors=("", "g", "g", "", "", "", "i"))
WIDE = PAGES.random(MAX_RANK, 5)
WIDE_SOMEWHERE = PAGES.random((MAX_RANK, 0, 0, 0, 0, 0, 0), 6)  # interpreted, a rank takes its time
MIXES: tuple[Mix, ...] = (((C, 1.0),), ((A, 1.0),), ((B, 0.5), (C, -0.5)), (), ((A, 1.0),))
LENGTHS = (10, 20, 12, 9, 11)


TAKES = Takes(WEIGHTS)


def bucket_of(inputs: StepInputs) -> Bucket | None:
    """That of the fused layers."""
    return bucket_for_adapters(inputs, TAKES)


def steps(device: torch.device) -> tuple[TritonStep, ReferenceStep]:
    """The same decoder in Triton and in PyTorch, on the CPU."""
    pool = PAGES.pool.float()
    return TritonStep(on(device, WEIGHTS), pool.to(device), BLOCKS), ReferenceStep(WEIGHTS, pool, BLOCKS)


class Run:
    """Sequences that both compute side by side."""

    def __init__(self, device: torch.device, mixes: tuple[Mix, ...] = MIXES) -> None:
        self.triton, self.reference = steps(device)
        batcher = Batcher(BLOCKS, WEIGHTS.embedding.shape[0], first=1)
        lengths = LENGTHS[: len(mixes)]
        self.sequences = [batcher.sequence(n, mix) for n, mix in zip(lengths, mixes, strict=True)]

    def compare(self, *counts: int) -> StepInputs:
        """One step that computes so many tokens of the sequences in turn."""
        work = [(s, n) for s, n in zip(self.sequences, counts, strict=True) if n]
        inputs = Batcher.step(work)
        expected = self.reference.step(inputs)
        torch.testing.assert_close(self.triton.step(inputs).cpu(), expected, atol=2e-3, rtol=2e-3)
        return inputs


@pytest.mark.slow
def test_prompts_decode_rows_and_both_at_once(device: torch.device) -> None:
    run = Run(device)
    run.compare(4, 17, 3, 0, 5)
    run.compare(1, 1, 2, 4, 1)
    assert bucket_of(run.compare(0, 0, 1, 1, 1)) == Bucket(4, 1)


@pytest.mark.sweep
@pytest.mark.slow
def test_decode_steps_of_changing_batches(device: torch.device) -> None:
    run = Run(device)
    run.compare(2, 2, 2, 2, 2)
    for counts in ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), (0, 0, 1, 0, 0)):
        assert bucket_of(run.compare(*counts)) == Bucket(8 if sum(counts) == 5 else 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mix", [((SCALED, 1.0),), ((WIDE_SOMEWHERE, 1.0), (A, -0.5))], ids=["vectors", "ranks"]
)
def test_a_step_that_no_bucket_holds(device: torch.device, mix: Mix) -> None:
    """Launched as it comes: with vectors, and with more ranks than a graph has room for."""
    run = Run(device, (mix,))
    run.compare(5)
    assert bucket_of(run.compare(1)) is None


def decode(rows: int, context: int = 5, mix: Mix = ()) -> StepInputs:
    blocks = list(range(1, 2 + context // BLOCK_SIZE))
    return Batcher.step([(Sequence_([0] * context, blocks, mix, context - 1), 1) for _ in range(rows)])


@pytest.mark.parametrize(
    ("inputs", "bucket"),
    [
        (decode(1), Bucket(1, 1)),
        (decode(3), Bucket(4, 1)),
        (decode(5), Bucket(8, 1)),
        (decode(7), Bucket(8, 1)),
        (decode(17, 128), Bucket(24, 1)),
        (decode(25, 129), Bucket(32, 4)),
        (decode(2, 513), Bucket(2, 16)),
        (decode(MAX_ROWS), Bucket(MAX_ROWS, 1)),
        (decode(MAX_ROWS + 1), None),
        (decode(2, mix=((A, 1.0),) * 4), Bucket(2, 1)),
        (decode(2, mix=((A, 1.0),) * 5), None),
        (decode(2, mix=((WIDE, 1.0),)), Bucket(2, 1)),
        (decode(2, mix=((WIDE, 1.0), (A, 1.0))), None),
        (decode(2, mix=((SCALED, 1.0),)), None),
        (replace(decode(2), logits_rows=np.array([1])), None),
        (replace(decode(2), logits_rows=np.array([0, 0])), None),
        (replace(decode(2), hidden=torch.empty(2, 48)), Bucket(2, 1)),
        (decode(2, mix=((GAINED, 1.0), (ONLY_GAINS, 0.5))), Bucket(2, 1)),
    ],
)
def test_buckets(inputs: StepInputs, bucket: Bucket | None) -> None:
    assert bucket_of(inputs) == bucket


KERNELS = (
    (norm_kernels, "norm_rows"),
    (head_kernels, "write_heads"),
    (attention, "attend_partition"),
    (head_kernels, "join_heads"),
    (gate_kernels, "gate_rows"),
    (gate_kernels, "add_rows"),
)


@pytest.mark.slow
@pytest.mark.sweep
def test_two_steps_of_a_bucket_differ_in_nothing_but_buffers(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton, _ = steps(device)
    batches: tuple[tuple[tuple[int, Mix], ...], ...] = (
        tuple(zip((140, 30, 300, 9, 21), MIXES, strict=True)),
        tuple(zip((9, 8, 7, 6, 5, 400), (*MIXES[:4], ((C, 2.0), (A, 1.0)), ()), strict=True)),
    )
    traces = []
    for seed, batch in enumerate(batches):
        batcher = Batcher(BLOCKS, WEIGHTS.embedding.shape[0], seed, first=1)
        sequences = [batcher.sequence(length, mix) for length, mix in batch]
        for sequence in sequences:
            sequence.done = len(sequence.tokens) - 1
        inputs = Batcher.step([(sequence, 1) for sequence in sequences])
        assert bucket_of(inputs) == Bucket(8, 4)
        triton.step(inputs)
        with Trace() as trace, monkeypatch.context() as patch:
            for module, name in KERNELS:
                patch.setattr(module, name, trace.kernel(name))
            triton.decode(triton.decode_steps.buffers[Bucket(8, 4)], Variant(adapted=True))
        traces.append(trace.calls)
    assert [call[0] for call in traces[0]].count("add_rows") == 4
    assert traces[0] == traces[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_are_captured_and_replayed(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(device)
    run.compare(5, 5, 5, 5, 5)
    for _ in range(3):
        run.compare(1, 1, 1, 1, 1)
    run.compare(0, 0, 0, 1, 0)
    assert not caplog.records  # nothing fell back
    graphs = run.triton.decode_steps.graphs
    assert graphs is not None
    assert set(graphs.keys) == {(Bucket(8, 1), Variant(True)), (Bucket(1, 1), Variant(False))}
