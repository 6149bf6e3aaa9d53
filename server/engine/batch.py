"""From scheduled sequences to the arrays of one step."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.kernels.inputs import BLOCK_SIZE, StepInputs, lora_inputs


@dataclass(frozen=True)
class Batch:
    """One step. ``scheduled`` is in row order; the index arrays point into the step's logits rows."""

    inputs: StepInputs
    scheduled: tuple[Scheduled, ...]
    sampling: tuple[tuple[Sequence, int], ...]  # sequences that draw a token, and their logits row
    scoring: tuple[tuple[Sequence, int, int], ...]  # prompt logprobs: sequence, first logits row, count

    @property
    def distinct_adapters(self) -> int:
        return len(self.inputs.lora.adapters) if self.inputs.lora else 0


def build_batch(scheduled: Seq[Scheduled]) -> Batch:
    """Lay the scheduled tokens out as rows, sequences of equal mixes side by side."""
    ordered = tuple(sorted(scheduled, key=lambda s: (s.sequence.stage.digest, s.sequence.id)))
    sequences = [s.sequence for s in ordered]
    counts = np.array([s.count for s in ordered], np.int64)
    starts = np.array([s.num_computed_tokens for s in sequences], np.int64)
    query_start = np.concatenate([[0], counts.cumsum()])
    positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - starts, counts)
    tables = _block_tables(sequences)
    blocks = np.repeat(tables, counts, axis=0)[np.arange(len(positions)), positions // BLOCK_SIZE]
    rows, sampling, scoring = _logits_rows(ordered, query_start)
    inputs = StepInputs(
        token_ids=np.concatenate([_tokens(s) for s in ordered]),
        positions=positions,
        slots=blocks.astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE,
        query_start=query_start.astype(np.int32),
        context=(starts + counts).astype(np.int32),
        block_tables=tables,
        logits_rows=np.array(rows, np.int64),
        lora=lora_inputs([s.stage.members for s in sequences]),
    )
    return Batch(inputs, ordered, tuple(sampling), tuple(scoring))


def _tokens(scheduled: Scheduled) -> np.ndarray:
    start = scheduled.sequence.num_computed_tokens
    return np.array(scheduled.sequence.token_ids[start : start + scheduled.count], np.int64)


def _block_tables(sequences: list[Sequence]) -> np.ndarray:
    tables = np.zeros((len(sequences), max(len(s.block_table) for s in sequences)), np.int32)
    for row, sequence in enumerate(sequences):
        tables[row, : len(sequence.block_table)] = sequence.block_table
    return tables


def _logits_rows(
    ordered: tuple[Scheduled, ...], query_start: np.ndarray
) -> tuple[list[int], list[tuple[Sequence, int]], list[tuple[Sequence, int, int]]]:
    """The rows whose logits are needed: the last of a caught-up sequence, and scored prompt rows."""
    rows: list[int] = []
    sampling: list[tuple[Sequence, int]] = []
    scoring: list[tuple[Sequence, int, int]] = []
    for item, first in zip(ordered, query_start.tolist(), strict=False):
        sequence, last = item.sequence, first + item.count - 1
        caught_up = item.count == sequence.num_uncomputed_tokens
        if sequence.needs_prompt_scores:
            wanted = min(item.count, sequence.num_prompt_tokens - 1 - sequence.num_computed_tokens)
            if wanted > 0:
                scoring.append((sequence, len(rows), wanted))
                rows += range(first, first + wanted)
        if caught_up and sequence.params.max_tokens > 0:
            sampling.append((sequence, len(rows)))
            rows.append(last)
    return rows, sampling, scoring
