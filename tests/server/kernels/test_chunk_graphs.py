"""Which steps of chunks of prompts are replayed, that nothing but buffers changes in them, and warming up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import BLOCK_SIZE, CacheRun, StepInputs
from tests.support.kernel_cases import Batcher, Mix, Sequence_, Shape
from tests.support.launches import Trace

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda import attention, lora_kernels, prompts
from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.layers import gate_kernels, head_kernels, norm_kernels
from manylora.server.kernels.cuda.replay.buckets import MAX_BLOCKS, MAX_CHUNK_ROWS, ChunkBucket
from manylora.server.kernels.cuda.replay.captured import Captured
from manylora.server.kernels.cuda.replay.chunks import chunk_bucket_of
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs, Replayed
from manylora.server.kernels.cuda.replay.replayed import Variant
from manylora.server.model.warm_up import warm_up
from tests.support.chunk_cases import BLOCKS, ChunkCase

CASE = ChunkCase(
    Shape(hidden=40, intermediate=56, heads=2, kv_heads=1, head_dim=16, vocab=50, bias=True, qk_norm=True)
)


def prompts_of(*counts: int, context: int = 0, mix: Mix = ()) -> StepInputs:
    """A step that computes so many tokens of each sequence, behind ``context`` others."""
    width = 1 + (context + max(counts)) // BLOCK_SIZE
    return Batcher.step([(Sequence_([0] * (context + n), [1] * width, mix, context), n) for n in counts])


def run_of_cache(inputs: StepInputs) -> StepInputs:
    return replace(inputs, cached=(CacheRun(np.array([0]), 0),))


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        (prompts_of(2), 16),
        (prompts_of(16), 16),
        (prompts_of(15, 2), 32),
        (prompts_of(*[2] * 8), 16),
        (prompts_of(*[2] * 9), 128),  # more sequences than smaller ones hold
        (prompts_of(*[8] * 64), 512),
        (prompts_of(*[2] * 65), None),
        (prompts_of(257), 384),
        (prompts_of(MAX_CHUNK_ROWS), 512),
        (prompts_of(MAX_CHUNK_ROWS + 1), None),
        (prompts_of(5, 1), None),
        (prompts_of(5, context=MAX_BLOCKS * BLOCK_SIZE - 5), 16),
        (prompts_of(5, context=MAX_BLOCKS * BLOCK_SIZE - 4), None),
        (prompts_of(5, 5, context=MAX_BLOCKS * BLOCK_SIZE // 2), None),
        (prompts_of(3, mix=((CASE.plain, 1.0),) * 32), 16),
        (prompts_of(3, mix=((CASE.plain, 1.0),) * 33), None),
        (prompts_of(3, mix=((CASE.wide, 1.0),)), 16),
        (prompts_of(3, mix=((CASE.wide, 1.0), (CASE.plain, 1.0))), None),
        (prompts_of(3, mix=((CASE.scaled, 1.0), (CASE.gained, 1.0))), 16),
        (prompts_of(3, mix=((CASE.elsewhere, 1.0),)), None),
        (replace(prompts_of(30), logits_rows=np.arange(9)), 128),
        (replace(prompts_of(3), logits_rows=np.array([], np.int64)), 16),
        (run_of_cache(prompts_of(3)), None),
    ],
)
def test_buckets(inputs: StepInputs, rows: int | None) -> None:
    assert chunk_bucket_of(inputs, CASE.takes, MAX_CHUNK_ROWS) == (
        None if rows is None else ChunkBucket(rows)
    )
    limited = chunk_bucket_of(inputs, CASE.takes, 128)
    assert limited == (None if rows is None or rows > 128 else ChunkBucket(rows))


@pytest.mark.parametrize(
    "inputs",
    [
        prompts_of(MAX_CHUNK_ROWS + 1),
        prompts_of(3, mix=((CASE.elsewhere, 1.0),)),
        run_of_cache(prompts_of(3)),
    ],
    ids=["rows", "input gains", "prefixes"],
)
def test_what_no_bucket_holds_is_launched(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, inputs: StepInputs
) -> None:
    triton = CASE.triton(device)
    launched = torch.zeros(1, 50)
    monkeypatch.setattr(triton, "launched", lambda given: launched if given is inputs else None)
    assert triton.step(inputs) is launched


KERNELS = (
    (norm_kernels, "norm_rows"),
    (head_kernels, "write_heads"),
    (prompts, "attend_chunks"),
    (gate_kernels, "gate_rows"),
    (lora_kernels, "shrink_tiles"),
    (lora_kernels, "expand_tiles"),
)


DECODING = (
    (attention, "attend_partition"),
    (attention, "join_partitions"),
    (head_kernels, "join_heads"),
    (gate_kernels, "add_rows"),
)


@pytest.mark.parametrize("adapted", [True, False])
def test_two_steps_of_a_bucket_differ_in_nothing_but_buffers(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    traces = []
    for seed, (counts, done) in enumerate((((9, 2, 6), (30, 0, 200)), ((3, 2, 2, 5, 8), (0, 7, 90, 1, 16)))):
        triton = CASE.triton(device)
        assert triton.chunk_steps is not None
        batcher = Batcher(BLOCKS, CASE.weights.embedding.shape[0], seed, first=1)
        mixes = (*CASE.mixes[seed:], *CASE.mixes)
        sequences = [
            batcher.sequence(n + before, mix if adapted else ())
            for n, before, mix in zip(counts, done, mixes, strict=False)
        ]
        for sequence, before in zip(sequences, done, strict=True):
            sequence.done = before
        with monkeypatch.context() as patch:
            for module, name in KERNELS:
                patch.setattr(module, name, Trace().kernel(name))
            triton.step(Batcher.step(list(zip(sequences, counts, strict=True))))
        ((bucket, buffers),) = triton.chunk_steps.buffers.items()
        assert bucket == ChunkBucket(32)
        with Trace() as trace, monkeypatch.context() as patch:
            for module, name in KERNELS:
                patch.setattr(module, name, trace.kernel(name))
            triton.chunks(buffers, Variant(adapted=adapted))
        traces.append(trace.calls)
    names = [call[0] for call in traces[0]]
    assert names.count("attend_chunks") == 2
    assert names.count("expand_tiles") == names.count("shrink_tiles") == (8 if adapted else 0)
    assert traces[0] == traces[1]


class Kept:
    """Stands in for a graph: calls what was captured."""

    def __init__(self, function: Callable[[], None]) -> None:
        function()
        self.function = function

    def replay(self) -> None:
        self.function()


class Warmed:
    """A decoder of one Triton step, as far as warming up asks for it."""

    def __init__(self, step: TritonStep, graphs: CudaGraphs, rows: int) -> None:
        self.triton = step
        self.capturing = Captured(graphs, rows)
        self.modules = range(CASE.takes.modules)
        self.step = step.step

    @staticmethod
    def draw(draws: Draws) -> list[int]:
        return [0] * len(draws.logits)


def test_warming_up_captures_all_that_small_chunks_need(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    triton = CASE.triton(device)
    captured: list[object] = []

    def capture(function: Callable[[], None]) -> Replayed:
        captured.append(function)
        return Kept(function)

    graphs = CudaGraphs(lambda: capture)
    assert triton.chunk_steps is not None
    triton.chunk_steps.graphs = triton.decode_steps.graphs = graphs
    for module, name in (*KERNELS, *DECODING):  # what they compute is compared elsewhere
        monkeypatch.setattr(module, name, Trace().kernel(name))
    with caplog.at_level("INFO"):
        warm_up(Warmed(triton, graphs, 128), rows=100, sequences=2, context=60)  # type: ignore[arg-type]
    chunks = {key for key in graphs.keys if isinstance(key[0], ChunkBucket)}  # type: ignore[index]
    rows = (16, 32, 64, 128)
    assert chunks == {(ChunkBucket(n), Variant(adapted)) for n in rows for adapted in (True, False)}
    assert "captured 4 decode steps and 8 steps of prompts" in caplog.text
    assert "0 could not be" in caplog.text
    monkeypatch.setattr(triton, "launched", lambda _: pytest.fail("it was launched"))
    graphs.seal()
    for counts in ((50, 50), (2, 2), (2,), (17,), (60,)):
        for mix in ((), CASE.mixes[1]):
            count = len(captured)
            triton.step(prompts_of(*counts, mix=mix))
            assert len(captured) == count, "everything was there"
