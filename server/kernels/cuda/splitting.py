"""A step of some of another step's sequences: they have nothing to do with the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from manylora.server.kernels.inputs import Int64, LoraInputs, StepInputs


@dataclass(frozen=True)
class Part:
    """Some sequences of a step as a step."""

    inputs: StepInputs
    logits: Int64  # [r] which of the whole step's logits are its own, in its order


def part_of(inputs: StepInputs, sequences: np.ndarray) -> Part:
    """That of ``sequences``, ascending numbers; of a step without given embeddings or hidden states."""
    counts = np.diff(inputs.query_start)[sequences]
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows = np.repeat(inputs.query_start[sequences] - start[:-1], counts) + np.arange(start[-1])
    place = np.full(len(inputs.token_ids), -1, np.int64)
    place[rows] = np.arange(len(rows))
    logits = np.flatnonzero(place[inputs.logits_rows] >= 0)
    own = replace(
        inputs,
        token_ids=inputs.token_ids[rows],
        positions=inputs.positions[rows],
        slots=inputs.slots[rows],
        query_start=start,
        context=inputs.context[sequences],
        block_tables=inputs.block_tables[sequences],
        logits_rows=place[inputs.logits_rows[logits]],
        lora=None if inputs.lora is None else _mixes_of(inputs.lora, sequences),
    )
    return Part(own, logits)


def _mixes_of(lora: LoraInputs, sequences: np.ndarray) -> LoraInputs | None:
    counts = np.diff(lora.start)[sequences]
    if not counts.any():
        return None
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    entries = np.repeat(lora.start[sequences] - start[:-1], counts) + np.arange(start[-1])
    used, adapter = np.unique(lora.adapter[entries], return_inverse=True)
    return LoraInputs(
        adapters=tuple(lora.adapters[i] for i in used),
        start=start,
        adapter=adapter.astype(np.int32),
        weight=lora.weight[entries],
    )
