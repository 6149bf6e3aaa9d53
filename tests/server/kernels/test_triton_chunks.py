"""Steps of chunks of prompts as they are replayed, against the PyTorch step; nothing but buffers changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.inputs import BLOCK_SIZE, EmbeddedRows, StepInputs
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.kernel_cases import Batcher, Mix, Shape

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.replay.buckets import Bucket, ChunkBucket
from manylora.server.kernels.cuda.replay.replayed import Variant
from tests.support.chunk_cases import BLOCKS, ChunkCase

CASE = ChunkCase(
    Shape(hidden=40, intermediate=56, heads=2, kv_heads=1, head_dim=16, vocab=50, windows=(None, 20))
)


class Run:
    """Sequences that both compute side by side; what is launched and not replayed fails."""

    def __init__(
        self, device: torch.device, patch: pytest.MonkeyPatch, mixes: tuple[Mix, ...], length: int = 40
    ) -> None:
        self.triton = CASE.triton(device)
        self.reference = ReferenceStep(CASE.weights, CASE.pool, BLOCKS)
        batcher = Batcher(BLOCKS, CASE.weights.embedding.shape[0], first=1)
        self.sequences = [batcher.sequence(length, mix) for mix in mixes]
        patch.setattr(self.triton, "launched", lambda _: pytest.fail("it was launched"))

    def inputs(self, *counts: int) -> StepInputs:
        """One step that computes so many tokens of the sequences in turn."""
        return Batcher.step([(s, n) for s, n in zip(self.sequences, counts, strict=True) if n])

    def compare(self, inputs: StepInputs) -> None:
        expected = self.reference.step(inputs)
        torch.testing.assert_close(self.triton.step(inputs).cpu(), expected, atol=2e-3, rtol=2e-3)

    @property
    def buckets(self) -> list[ChunkBucket]:
        """Those of chunks that were used."""
        assert self.triton.chunk_steps is not None
        return list(self.triton.chunk_steps.buffers)


@pytest.mark.slow
def test_chunks_of_several_sequences_mixes_and_contexts(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(device, monkeypatch, CASE.mixes)
    run.compare(run.inputs(2, 17, 3, 2))
    run.compare(run.inputs(0, 4, 2, 2))
    run.compare(run.inputs(0, 0, 7, 0))  # of the base alone
    assert run.buckets == [ChunkBucket(32), ChunkBucket(16)]
    run.compare(run.inputs(1, 2, 1, 2))  # beside rows that decode
    assert run.buckets == [ChunkBucket(32), ChunkBucket(16)]
    assert list(run.triton.decode_steps.buffers) == [Bucket(2, 1)]


@pytest.mark.sweep
@pytest.mark.slow
def test_input_gains_given_embeddings_and_hidden_states(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(device, monkeypatch, (((CASE.scaled, 1.0),), ((CASE.plain, 1.0),)))
    run.compare(run.inputs(4, 2))
    inputs = run.inputs(2, 3)
    values = torch.randn(2, CASE.shape.hidden, generator=torch.Generator().manual_seed(1))
    hidden = [torch.empty(2, CASE.shape.hidden, device=where) for where in (device, "cpu")]
    rows = np.array([1, 4])
    ours = run.triton.step(replace(inputs, embedded=EmbeddedRows(rows, values.to(device)), hidden=hidden[0]))
    expected = run.reference.step(replace(inputs, embedded=EmbeddedRows(rows, values), hidden=hidden[1]))
    torch.testing.assert_close(ours.cpu(), expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(hidden[0].cpu(), hidden[1], atol=2e-3, rtol=2e-3)
    run.compare(run.inputs(3, 2))  # what was given is not given any more


@pytest.mark.slow
def test_logits_of_some_rows_only(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(device, monkeypatch, ((), ()))
    for rows in ([0, 2, 3, 4], []):
        inputs = replace(run.inputs(2, 3), logits_rows=np.array(rows, np.int64))
        run.compare(inputs)


@pytest.mark.sweep
@pytest.mark.slow
def test_what_fills_up_writes_to_block_0_alone_and_adds_nothing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step in buffers that had another one, and in fresh ones; other slots stay as they are."""
    used, fresh = Run(device, monkeypatch, CASE.mixes), Run(device, monkeypatch, CASE.mixes)
    used.triton.step(used.inputs(4, 2, 3, 2))
    for sequence in used.sequences:
        sequence.done = 0
    inputs = used.inputs(0, 5, 0, 2)
    caches = [step.triton.reference.cache for step in (used, fresh)]
    before = [[(kv.keys.clone(), kv.values.clone()) for kv in cache] for cache in caches]
    logits = used.triton.step(inputs).clone()
    assert torch.equal(fresh.triton.step(inputs), logits)
    others = np.setdiff1d(np.arange(BLOCK_SIZE, BLOCKS * BLOCK_SIZE), inputs.slots)
    for cache, old in zip(caches, before, strict=True):
        for kv, (keys, values) in zip(cache, old, strict=True):
            assert torch.equal(kv.keys[others], keys[others])
            assert torch.equal(kv.values[others], values[others])
    for one, other in zip(*caches, strict=True):
        assert torch.equal(one.keys[inputs.slots], other.keys[inputs.slots])
        assert torch.isfinite(one.keys).all()


@pytest.mark.slow
@pytest.mark.sweep
def test_a_row_has_the_same_bits_as_where_chunks_are_launched(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the library's products, which may sum otherwise for other numbers of rows."""
    run = Run(device, monkeypatch, CASE.mixes)
    inputs = run.inputs(3, 8, 2, 2)
    replayed = run.triton.step(inputs).clone()
    monkeypatch.undo()
    run.triton.chunk_steps = None
    torch.testing.assert_close(run.triton.step(inputs), replayed, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_of_chunks_are_captured_and_replayed(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(device, monkeypatch, CASE.mixes)
    for counts in ((3, 4, 5, 2), (2, 2, 3, 2), (6, 0, 4, 2), (1, 2, 1, 3)):
        run.compare(run.inputs(*counts))
    assert not caplog.records  # nothing fell back
    assert run.triton.chunk_steps is not None
    graphs = run.triton.chunk_steps.graphs
    assert graphs is not None
    assert (ChunkBucket(16), Variant(True)) in graphs.keys
