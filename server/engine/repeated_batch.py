"""The batch of a step that does once more what the step before it did: one token of the same sequences.

Most steps are of that kind. Made anew, the arrays of such a step would be those of the last one, moved by one
position; so they are moved in place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manylora.server.engine.batch import Batch
from manylora.server.kernels.inputs import BLOCK_SIZE, Int32


def following_batch(batch: Batch) -> Batch:
    """The batch of the step after that of ``batch``, whose arrays it takes over.

    Every sequence of ``batch`` ran one token in it and has drawn the next one since, for which its block
    table has room; what the sequences run with has not changed. ``batch`` is not to be used any more.
    """
    inputs, sequences = batch.inputs, batch.sampled.sequences
    inputs.token_ids[:] = [sequence.token_ids[-1] for sequence in sequences]
    inputs.positions[:] += 1
    inputs.context[:] += 1
    inputs.slots[:] += 1
    tables = inputs.block_tables
    for row in np.flatnonzero(inputs.positions % BLOCK_SIZE == 0).tolist():
        table = sequences[row].block_table
        if len(table) > tables.shape[1]:
            tables = _wider(tables, len(table))
        tables[row, len(table) - 1] = table[-1]
        inputs.slots[row] = table[-1] * BLOCK_SIZE
    if tables is inputs.block_tables:
        return batch
    return replace(batch, inputs=replace(inputs, block_tables=tables))


def _wider(tables: Int32, width: int) -> Int32:
    return np.pad(tables, ((0, 0), (0, width - tables.shape[1])))
