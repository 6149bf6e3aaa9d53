"""From scheduled sequences to the arrays of one step."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from manylora.server.engine.sampling.sampler import SampledRows
from manylora.server.engine.scheduler import Scheduled
from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.inputs import (
    BLOCK_SIZE,
    CacheRun,
    KeptStates,
    PromptRun,
    StepInputs,
    lora_inputs,
)


@dataclass(frozen=True)
class Batch:
    """One step. ``scheduled`` is in row order; the index arrays point into the step's logits rows."""

    inputs: StepInputs
    scheduled: tuple[Scheduled, ...]
    sampling: tuple[tuple[Sequence, int], ...]  # sequences that draw a token, and their logits row
    sampled: SampledRows  # the same sequences, and how their tokens are drawn
    scoring: tuple[tuple[Sequence, int, int], ...]  # prompt logprobs: sequence, first logits row, count
    wanted: tuple[tuple[Sequence, int, int], ...]  # logits or states to deliver: sequence, first row, count

    @property
    def distinct_adapters(self) -> int:
        return len(self.inputs.lora.adapters) if self.inputs.lora else 0


def build_batch(scheduled: Seq[Scheduled]) -> Batch:
    """Lay the scheduled tokens out as rows, sequences of equal mixes side by side."""
    ordered = tuple(sorted(scheduled, key=_order))
    sequences = [s.sequence for s in ordered]
    counts = np.array([s.count for s in ordered], np.int64)
    starts = np.array([s.num_computed_tokens for s in sequences], np.int64)
    query_start = np.concatenate([[0], counts.cumsum()])
    positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - starts, counts)
    tables = _block_tables(sequences)
    blocks = np.repeat(tables, counts, axis=0)[np.arange(len(positions)), positions // BLOCK_SIZE]
    logits = _LogitsRows(ordered, query_start)
    inputs = StepInputs(
        token_ids=np.concatenate([_tokens(s) for s in ordered]),
        positions=positions,
        slots=blocks.astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE,
        query_start=query_start.astype(np.int32),
        context=(starts + counts).astype(np.int32),
        block_tables=tables,
        logits_rows=np.array(logits.rows, np.int64),
        lora=lora_inputs([s.stage.members for s in sequences]),
        merged=sequences[0].mix.merged,  # of all of them: the scheduler sees to that
        prompts=tuple(_prompt_runs(ordered, query_start)),
        cached=tuple(run for run in map(_cache_run, sequences) if run is not None),
        states=KeptStates() if any(s.pooled is not None for s, _, _ in logits.wanted) else None,
    )
    return Batch(
        inputs,
        ordered,
        sampling=tuple(logits.sampling),
        sampled=SampledRows([sequence for sequence, _ in logits.sampling]),
        scoring=tuple(logits.scoring),
        wanted=tuple(logits.wanted),
    )


def _order(item: Scheduled) -> tuple[bytes, int]:
    """By the members that act on rows: of a soft prompt alone there are none, as of the base."""
    stage = item.sequence.stage
    return (stage.digest if stage.members else b""), item.sequence.id


def _tokens(scheduled: Scheduled) -> np.ndarray:
    """The token ids of the rows; 0 for virtual tokens."""
    sequence = scheduled.sequence
    start = sequence.num_computed_tokens - sequence.num_virtual_tokens
    if start >= 0:
        return np.array(sequence.token_ids[start : start + scheduled.count], np.int64)
    virtual = min(-start, scheduled.count)
    return np.array([0] * virtual + sequence.token_ids[: scheduled.count - virtual], np.int64)


def _prompt_runs(ordered: tuple[Scheduled, ...], query_start: np.ndarray) -> Iterator[PromptRun]:
    """The rows of virtual tokens, by sequence."""
    for item, row in zip(ordered, query_start.tolist(), strict=False):
        prompt, first = item.sequence.prompt, item.sequence.num_computed_tokens
        if prompt is not None and first < prompt.count:
            count = min(prompt.count - first, item.count)
            yield PromptRun(row, count, prompt.start + first * prompt.width)


def _cache_run(sequence: Sequence) -> CacheRun | None:
    """The virtual tokens of a sequence whose K and V are yet to be copied; its blocks have room for them."""
    prompt, first = sequence.prompt, sequence.uncopied_from
    if prompt is None or first is None:
        return None
    positions = np.arange(first, prompt.count)
    slots = np.array(sequence.block_table, np.int64)[positions // BLOCK_SIZE] * BLOCK_SIZE
    return CacheRun(slots + positions % BLOCK_SIZE, prompt.start + first * prompt.width)


def _block_tables(sequences: list[Sequence]) -> np.ndarray:
    tables = np.zeros((len(sequences), max(len(s.block_table) for s in sequences)), np.int32)
    for row, sequence in enumerate(sequences):
        tables[row, : len(sequence.block_table)] = sequence.block_table
    return tables


class _LogitsRows:
    """The rows whose logits are needed, and what for."""

    def __init__(self, ordered: tuple[Scheduled, ...], query_start: np.ndarray) -> None:
        self.rows: list[int] = []
        self.sampling: list[tuple[Sequence, int]] = []
        self.scoring: list[tuple[Sequence, int, int]] = []
        self.wanted: list[tuple[Sequence, int, int]] = []
        for item, first in zip(ordered, query_start.tolist(), strict=False):
            self._take(item, first)

    def _take(self, item: Scheduled, first: int) -> None:
        """``first``: the row of the first of the item's tokens."""
        sequence, end = item.sequence, first + item.count
        computed = sequence.num_computed_tokens
        if sequence.needs_prompt_scores:
            virtual = max(0, sequence.num_virtual_tokens - computed)  # those have no scores
            done = max(0, computed - sequence.num_virtual_tokens)
            count = min(item.count - virtual, sequence.num_prompt_tokens - 1 - done)
            if count > 0:
                self.scoring.append((sequence, len(self.rows), count))
                self.rows += range(first + virtual, first + virtual + count)
        count = sequence.num_wanted_logits(computed, item.count)
        if count:
            self.wanted.append((sequence, len(self.rows), count))
            self.rows += range(end - count, end)
        caught_up = item.count == sequence.num_uncomputed_tokens
        if caught_up and sequence.params.max_tokens > 0:
            self.sampling.append((sequence, len(self.rows)))
            self.rows.append(end - 1)
