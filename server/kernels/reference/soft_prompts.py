"""The virtual tokens of a step: embeddings and cache entries that come from the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from manylora.server.kernels.inputs import CacheRun, EmbeddedRows, PromptRun, StepInputs
from manylora.server.kernels.reference.attention import LayerCache


def embed_prompts(pool: torch.Tensor, width: int, inputs: StepInputs, scale: float = 1.0) -> StepInputs:
    """The step with the embeddings [D = ``width``] of its virtual tokens given, times ``scale``.

    Itself if it has none.
    """
    if not inputs.prompts:
        return inputs
    virtual = prompt_rows(pool, width, inputs.prompts)
    virtual = replace(virtual, values=virtual.values * scale)
    given = inputs.embedded
    return replace(inputs, embedded=virtual if given is None else _joined(given, virtual), prompts=())


def prompt_rows(pool: torch.Tensor, width: int, runs: Sequence[PromptRun]) -> EmbeddedRows:
    """The embeddings of virtual tokens, whose runs are in the order of the rows."""
    rows = np.concatenate([np.arange(run.row, run.row + run.count) for run in runs])
    values = [pool[run.start : run.start + run.count * width].view(run.count, width) for run in runs]
    return EmbeddedRows(rows, torch.cat(values).float())


def _joined(given: EmbeddedRows, virtual: EmbeddedRows) -> EmbeddedRows:
    """Both in the order of the rows; a virtual token has no other embedding."""
    keep = np.flatnonzero(~np.isin(given.rows, virtual.rows))
    rows = np.concatenate([given.rows[keep], virtual.rows])
    values = torch.cat([given.values[torch.from_numpy(keep).to(given.values.device)], virtual.values])
    order = np.argsort(rows)
    return EmbeddedRows(rows[order], values[torch.from_numpy(order).to(values.device)].contiguous())


def fill_cache(pool: torch.Tensor, layers: Sequence[LayerCache], runs: Sequence[CacheRun]) -> None:
    """Put keys and values of virtual tokens into the cache of ``layers``, in their order."""
    for run in runs:
        heads, size = layers[0].keys.shape[1:]
        shape = len(run.slots), len(layers), 2, heads, size
        values = pool[run.start : run.start + int(np.prod(shape))].view(shape)
        slots = torch.from_numpy(run.slots).to(pool.device)
        for index, layer in enumerate(layers):
            layer.write(slots, values[:, index, 0], values[:, index, 1])
