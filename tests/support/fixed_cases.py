"""Sequences that a deterministic step computes in any pieces and any company, and what each has alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from manylora.server.kernels.cuda.fixed.step import FixedStep
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.weights import DecoderWeights
from tests.support.kernel_cases import Batcher, Mix, Pages, Sequence_, Shape, in_type, on, random_decoder

BLOCKS = 96
SMALL = Shape(hidden=40, intermediate=56, heads=2, kv_heads=1, head_dim=16, vocab=50, layers=1, bias=True)

Run = Callable[[StepInputs], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A decoder, and mixes of every kind that it takes."""

    weights: DecoderWeights
    pool: torch.Tensor
    mixes: tuple[Mix, ...]

    def step(self, device: torch.device) -> FixedStep:
        """A step on a device, its cache empty."""
        return FixedStep(on(device, self.weights), self.pool.to(device), BLOCKS)


def case_of(dtype: torch.dtype, shape: Shape = SMALL, more: bool = False) -> Case:
    """The case of a shape, computed with in ``dtype``; with ``more`` mixes."""
    weights = random_decoder(shape)
    pages = Pages(weights, 1 << 18)
    a, b = pages.random(5, 1), pages.random((0, 18, 3, 0, 1, 0, 4), 2)
    gained = pages.random(2, 3, vectors=("g", "gc", "c", "g", "gc", "", "gc"))
    scaled = pages.random(2, 4, vectors=("g", "", "c", "", "gc", "", "gci"))
    mixes: tuple[Mix, ...] = (
        (),
        ((a, 1.0),),
        ((a, 1.0),),  # whose tiles are joined with those of the one before
        ((scaled, -0.7), (b, 2.0)),
        *(((b, 0.5), (a, -0.5)), ((gained, 1.0),)) * more,
    )
    return Case(in_type(dtype, weights), pages.pool.to(dtype), mixes)


def alone(run: Run, tokens: Sequence[int], mix: Mix) -> torch.Tensor:
    """The logits [n, V] of all ``tokens`` of a sequence computed at once, alone, in blocks of its own."""
    blocks = [BLOCKS - 1 - i for i in range(-(-len(tokens) // BLOCK_SIZE))]
    inputs = Batcher.step([(Sequence_([*tokens], blocks, mix), len(tokens))], all_logits=True)
    return run(inputs).clone()


def schedules(case: Case, seed: int, length: int) -> Iterator[list[tuple[Sequence_, int]]]:
    """Random steps until every sequence of every mix is computed: who has how many rows.

    One sequence is taken up again from the start, in other blocks, as after a preemption.
    """
    rng = np.random.default_rng(seed)
    batcher = Batcher(BLOCKS - 4, case.weights.embedding.shape[0], seed, first=1)
    sequences = [batcher.sequence(length + i, mix) for i, mix in enumerate(case.mixes)]
    preempted = sequences[1]
    spare = batcher.sequence(len(preempted.tokens), preempted.mix).blocks
    while left := [s for s in sequences if s.done < len(s.tokens)]:
        if spare and preempted.done > 3:
            preempted.blocks, preempted.done, spare = spare, 0, []
        chosen = [s for s in left if rng.random() < 0.7] or left
        work = []
        for sequence in chosen:
            most = min(len(sequence.tokens) - sequence.done, int(rng.choice([1, 1, 3, 9])))
            work.append((sequence, most))
        yield work


def logits_by_row(run: Run, work: list[tuple[Sequence_, int]]) -> list[tuple[Sequence_, slice, torch.Tensor]]:
    """Run a step: for each sequence which of its tokens it computed, and their logits."""
    before = [sequence.done for sequence, _ in work]
    logits = run(Batcher.step(work, all_logits=True)).clone()
    parts = logits.split([count for _, count in work])
    return [
        (sequence, slice(first, first + count), part)
        for (sequence, count), first, part in zip(work, before, parts, strict=True)
    ]


def hidden_too(step: FixedStep, inputs: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a step, and what the head was applied to."""
    like = step.reference.weights.embedding
    found = like.new_empty(len(inputs.logits_rows), like.shape[1])
    return step.step(replace(inputs, hidden=found)).clone(), found
