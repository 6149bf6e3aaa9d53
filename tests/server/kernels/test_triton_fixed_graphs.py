"""Deterministic steps as they are launched and replayed: sizes, buffers, launches, captures at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.kernels.inputs import BLOCK_SIZE, CacheRun, StepInputs
from tests.support.kernel_cases import Batcher, Mix, Sequence_
from tests.support.launches import Trace

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda import lora_kernels, prompts
from manylora.server.kernels.cuda.fixed import products
from manylora.server.kernels.cuda.fixed.buckets import (
    FixedBucket,
    decode_sizes,
    fixed_bucket_for,
    fixed_bucket_of,
    further_counts,
)
from manylora.server.kernels.cuda.fixed.captured import FixedCaptured
from manylora.server.kernels.cuda.layers import gate_kernels, head_kernels, norm_kernels
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs
from manylora.server.kernels.cuda.replay.mix_buffers import MAX_RANK
from manylora.server.kernels.cuda.replay.replayed import Variant
from tests.support.fixed_cases import SMALL, case_of

CASE = case_of(torch.float32, replace(SMALL, layers=2))
TAKES = CASE.step(torch.device("cpu")).fused.takes
PLAIN: Mix = CASE.mixes[1]


def step_of(*counts: int, context: int = 0, mix: Mix = ()) -> StepInputs:
    """A step that computes so many tokens of each sequence, behind ``context`` others."""
    width = 1 + (context + max(counts)) // BLOCK_SIZE
    return Batcher.step([(Sequence_([0] * (context + n), [1] * width, mix, context), n) for n in counts])


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        (step_of(1), 8),
        (step_of(*[1] * 9), 16),
        (step_of(5, 1), 8),
        (step_of(*[1] * 256), 256),
        (step_of(*[1] * 257), None),
        (step_of(256, *[1] * 255), 512),
        (step_of(257, *[1] * 255), 512),
        (step_of(258, *[1] * 255), None),
        (step_of(512), 512),
        (step_of(513), None),
        (step_of(*[1] * 256, context=512 * BLOCK_SIZE - 1), 256),
        (step_of(*[1] * 256, context=512 * BLOCK_SIZE), None),
        (step_of(1, mix=((PLAIN[0][0], 1.0),) * 32), 8),
        (step_of(1, mix=((PLAIN[0][0], 1.0),) * 33), None),
        (replace(step_of(9), logits_rows=np.arange(9)), 16),
        (replace(step_of(300), logits_rows=np.arange(257)), None),
        (replace(step_of(3), cached=(CacheRun(np.array([0]), 0),)), None),
        (replace(step_of(3), hidden=torch.empty(1, SMALL.hidden)), 8),
    ],
)
def test_buckets(inputs: StepInputs, rows: int | None) -> None:
    assert fixed_bucket_of(inputs, TAKES) == (None if rows is None else FixedBucket(rows))


@given(
    rows=st.integers(1, 4096),
    sequences=st.integers(1, 400),
    context=st.integers(1, 5000),
    some=st.data(),
)
def test_all_sizes_are_captured_at_start(
    rows: int, sequences: int, context: int, some: st.DataObject
) -> None:
    """Whatever step that fits into a bucket comes, its bucket was among those."""
    sequences = min(sequences, rows)
    warm = [[1] * n for n in decode_sizes(sequences)] + further_counts(rows, sequences, context)
    assert all(len(c) <= sequences and sum(c) <= rows and max(c) <= context for c in warm)
    captured = {fixed_bucket_for(sum(counts), len(counts)) for counts in warm}
    assert None not in captured
    assert len(captured) == len(warm), "none is run twice"
    count = some.draw(st.integers(1, sequences))
    size = some.draw(st.integers(count, min(rows, count * context)))
    bucket = fixed_bucket_for(size, count)
    assert bucket is None or bucket in captured


KERNELS = (
    (norm_kernels, "norm_rows"),
    (head_kernels, "write_heads"),
    (prompts, "attend_chunks"),
    (gate_kernels, "gate_rows"),
    (lora_kernels, "shrink_tiles"),
    (lora_kernels, "expand_tiles"),
    (products, "multiply_rows"),
)


def traced(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, seed: int, counts: tuple[int, ...], adapted: bool
) -> list[tuple[Any, ...]]:
    """What a step asks of the device once its buffers are there."""
    step = CASE.step(device)
    batcher = Batcher(60, SMALL.vocab, seed, first=1)
    mixes = (*CASE.mixes[1 + seed : 5], *CASE.mixes[:5])
    sequences = [
        batcher.sequence(n + 20 * i, mix if adapted else ())
        for i, (n, mix) in enumerate(zip(counts, mixes, strict=False))
    ]
    for i, sequence in enumerate(sequences):
        sequence.done = 20 * i
    with monkeypatch.context() as patch:
        for module, name in KERNELS:
            patch.setattr(module, name, Trace().kernel(name))
        step.step(Batcher.step(list(zip(sequences, counts, strict=True))))
    ((bucket, buffers),) = step.steps.buffers.items()
    assert bucket == FixedBucket(16)
    with Trace() as trace, monkeypatch.context() as patch:
        for module, name in KERNELS:
            patch.setattr(module, name, trace.kernel(name))
        step.fused.replayed(buffers, Variant(adapted=adapted))
    calls: list[tuple[Any, ...]] = trace.calls
    return calls


@pytest.mark.parametrize("adapted", [True, False])
def test_two_steps_of_a_bucket_differ_in_nothing_but_buffers(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    first = traced(device, monkeypatch, 0, (1, 9, 1, 4), adapted)
    second = traced(device, monkeypatch, 1, (1, 1, 1, 2, 1, 3), adapted)
    assert first == second
    names = [call[0] for call in first]
    assert names.count("multiply_rows") == 2 * 4 + 1
    assert names.count("expand_tiles") == names.count("shrink_tiles") == (8 if adapted else 0)


@pytest.mark.parametrize(("mix", "launches"), [((), 9), (PLAIN, 17)], ids=["base", "adapters"])
@pytest.mark.parametrize("counts", [(1, 1, 1), (7, 1)], ids=["decoding", "prompt"])
def test_launches_of_a_layer(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], mix: Mix, launches: int
) -> None:
    """As those of a prompt without the mode, where a product is one launch of the library's."""
    found = []
    for layers in (1, 2):
        step = case_of(torch.float32, replace(SMALL, layers=layers)).step(device)
        calls: list[str] = []

        def noted(name: str, calls: list[str] = calls) -> Any:
            class Kernel:
                def __getitem__(self, _: tuple[int, ...]) -> Callable[..., None]:
                    return lambda *_, **__: calls.append(name)

            return Kernel()

        with monkeypatch.context() as patch:
            for module, name in KERNELS:
                patch.setattr(module, name, noted(name))
            step.step(step_of(*counts, mix=mix))
        found.append(calls)
    assert len(found[1]) - len(found[0]) == launches
    assert launches < 20


class Kept:
    """Stands in for a graph: calls what was captured."""

    def __init__(self, function: Callable[[], None]) -> None:
        function()
        self.replay = function


def test_nothing_is_captured_after_warming_up(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    step = CASE.step(device)
    graphs = CudaGraphs(lambda: Kept)
    step.steps.graphs = graphs
    captures = FixedCaptured(graphs)
    for module, name in KERNELS:  # what they compute is compared elsewhere
        monkeypatch.setattr(module, name, Trace().kernel(name))
    limits = {"rows": 60, "sequences": 20, "context": 40}
    for mix in ((), PLAIN):
        for n, context in captures.sizes(20, 40):
            step.step(step_of(*[1] * n, context=context - 1, mix=mix))
        for counts in captures.chunks(**limits):
            step.step(step_of(*counts, mix=mix))
    rows = (8, 16, 32, 64)
    assert graphs.keys == {(FixedBucket(n), Variant(adapted)) for n in rows for adapted in (True, False)}
    captures.seal()
    before = graphs.keys
    monkeypatch.setattr(step.fused, "step", lambda _: pytest.fail("it was launched"))
    for counts in ([1], [1] * 20, [30, 1, 1], [40, 20], [33]):
        for mix in ((), PLAIN):
            step.step(step_of(*counts, mix=mix))
    assert graphs.keys == before
    assert captures.num_failed == 0
    captures.restart()
    assert not graphs.keys


def test_more_ranks_than_graphs_have_room_for_are_launched(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CASE.step(device)
    wide = replace(PLAIN[0][0], rank=np.where(PLAIN[0][0].rank > 0, MAX_RANK + 1, 0).astype(np.int32))
    inputs = step_of(1, mix=((wide, 1.0),))
    launched = torch.zeros(1, SMALL.vocab)
    monkeypatch.setattr(step.fused, "step", lambda given: launched if given is inputs else None)
    assert step.step(inputs) is launched
