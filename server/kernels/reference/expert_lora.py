"""What adapters add to the products of experts: ``y += Σ_k w_k · B_k (A_k x)``, row by row of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from manylora.server.kernels.inputs import AdapterPages, Int32, LoraInputs, ModuleShape, page_length


class ExpertDelta:
    """The adapter work of one step at experts, whose rows are some of the step's in any order."""

    def __init__(
        self, pool: torch.Tensor, shapes: Sequence[ModuleShape], inputs: LoraInputs, query_start: Int32
    ) -> None:
        """``shapes`` are those of all modules, in the numbering of the pages."""
        self._pool = pool
        self._shapes = shapes
        self._inputs = inputs
        self._sequence = np.repeat(np.arange(len(query_start) - 1), np.diff(query_start))  # of each row

    def add(self, module: int, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to ``y`` [n, out] what ``module`` has for ``x`` [n, in], of those ``rows`` [n] of the step."""
        owner = self._sequence[rows.numpy(force=True)]
        for sequence in np.unique(owner).tolist():
            mine = torch.from_numpy(np.flatnonzero(owner == sequence)).to(x.device)
            for pages, weight in self._members(sequence, module):
                a, b = self._matrices(module, pages)
                reduced = ((x[mine] @ a.T).float() * weight).to(x.dtype)
                y.index_add_(0, mine, reduced @ b)

    def _members(self, sequence: int, module: int) -> Iterator[tuple[AdapterPages, float]]:
        """The adapters of the sequence's mix that have rank pages there."""
        inputs = self._inputs
        for entry in range(inputs.start[sequence], inputs.start[sequence + 1]):
            pages = inputs.adapters[inputs.adapter[entry]]
            if pages.rank[module]:
                yield pages, float(inputs.weight[entry])

    def _matrices(self, module: int, pages: AdapterPages) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of A [r, in] and B transposed [r, out]."""
        shape, rank = self._shapes[module], int(pages.rank[module])
        offset = int(pages.offset[module]) + self._pool.storage_offset()
        a_len, b_len = page_length(shape.in_features), page_length(shape.out_features)
        a = self._pool.as_strided((rank, shape.in_features), (a_len, 1), offset)
        return a, self._pool.as_strided((rank, shape.out_features), (b_len, 1), offset + rank * a_len)


def expert_delta(
    pool: torch.Tensor, shapes: Sequence[ModuleShape], inputs: LoraInputs | None, query_start: Int32
) -> ExpertDelta | None:
    """What the adapters of a step add at experts; None if none of them has rank pages there."""
    if inputs is None or not any(shape.expert for shape in shapes[-1:]):
        return None
    first = next(i for i, shape in enumerate(shapes) if shape.expert)
    if not any(pages.rank[first:].any() for pages in inputs.adapters):
        return None
    return ExpertDelta(pool, shapes, inputs, query_start)
