"""A packed adapter divided between ranks: the same places on each, with what its part of the base needs.

The changes of a module follow its cut. Of a module that is cut along its outputs (q, k, v, gate, up) a rank
has all of A, and of B, gains and constants its outputs; the products are complete there. Of one that is cut
along its inputs (o, down) it has its inputs of A and all of B; the products are parts of a sum that the
ranks make with the base's: so constants are rank 0's alone, while gains, which multiply what is
summed, are everybody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import TargetModule
from manylora.server.kernels.inputs import PromptPages, VectorPages, VocabularyPages, page_length
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.model.pages.tables import place
from manylora.server.model.parallel.parts.sharding import Cut, Sharding

Rows = list[torch.Tensor]  # [r, n] of each rank


class Splitter:
    """Divides adapters of one base."""

    def __init__(
        self, modules: Sequence[TargetModule], cuts: Sequence[Sequence[Cut]], shardings: Sequence[Sharding]
    ) -> None:
        """``cuts`` are of each rank, one for each of the ``modules`` of the whole model."""
        self._modules = modules
        self._cuts = cuts
        self._shardings = shardings

    def divide(self, packed: PackedAdapter) -> PackedAdapter:
        """The adapter with the data [ranks, n] of all ranks, flat, and the places that all have in common.

        Raises:
            ArtifactError: a cut goes through what only works together.
        """
        pages = _Pages(len(self._cuts), packed.data.dtype)
        offset, vectors = np.zeros_like(packed.offset), _absent(packed.vectors)
        for index in range(len(self._modules)):
            part = _Module(packed, index, self._modules[index], [cuts[index] for cuts in self._cuts])
            if packed.rank[index]:
                offset[index] = pages.put(part.a())
                pages.put(part.b())
            if vectors is None or packed.vectors is None:
                continue
            for name in _KINDS:
                if getattr(packed.vectors, name)[index] >= 0:
                    getattr(vectors, name)[index] = pages.put(part.vector(name))
        vocabulary = self._put_vocabulary(pages, packed)
        prompt = self._put_prompt(pages, packed)
        return replace(
            packed, data=pages.data(), offset=offset, vectors=vectors, vocabulary=vocabulary, prompt=prompt
        )

    def _put_vocabulary(self, pages: _Pages, packed: PackedAdapter) -> VocabularyPages | None:
        """Tables and classes are rank 0's, which looks tokens up and gives them to the others."""
        if packed.vocabulary is None:
            return None
        start = _start_of(packed.vocabulary, packed.data.numel())
        end = packed.data.numel() if packed.prompt is None else packed.prompt.start
        return place(packed.vocabulary, pages.put_run(packed.data[start:end]) - start)

    def _put_prompt(self, pages: _Pages, packed: PackedAdapter) -> PromptPages | None:
        """Embeddings are rank 0's; of keys and values each rank has those of its heads."""
        prompt = packed.prompt
        if prompt is None:
            return None
        run = packed.data[prompt.start : prompt.start + prompt.count * prompt.width]
        if not prompt.in_cache:
            return replace(prompt, start=pages.put_run(run))
        heads, size = self._shardings[0].kv_heads, self._shardings[0].head_dim
        every = run.view(prompt.count, -1, heads, size)
        own = [every[:, :, s.own_kv_heads.start : s.own_kv_heads.stop].flatten(1) for s in self._shardings]
        return replace(prompt, width=own[0].shape[1], start=pages.put_runs([part.flatten() for part in own]))


class _Module:
    """What an adapter has for one module, as each rank gets it."""

    def __init__(self, packed: PackedAdapter, index: int, module: TargetModule, cuts: Sequence[Cut]) -> None:
        self._packed = packed
        self._index = index
        self._module = module
        self._cuts = cuts

    def a(self) -> Rows:
        """A [r, in]."""
        packed, index = self._packed, self._index
        whole = self._rows(int(packed.offset[index]), int(packed.rank[index]), self._module.in_features)
        return [cut.of_inputs(whole) for cut in self._cuts]

    def b(self) -> Rows:
        """B transposed [r, out]."""
        packed, index = self._packed, self._index
        rank, behind = (
            int(packed.rank[index]),
            int(packed.rank[index]) * page_length(self._module.in_features),
        )
        whole = self._rows(int(packed.offset[index]) + behind, rank, self._module.out_features)
        return [cut.of_outputs(whole) for cut in self._cuts]

    def vector(self, name: str) -> Rows:
        """A vector, as [1, n], or a matrix, by its name in :class:`VectorPages`."""
        assert self._packed.vectors is not None
        start = int(getattr(self._packed.vectors, name)[self._index])
        inputs, outputs = self._module.in_features, self._module.out_features
        if name == "input_gain":
            return [cut.of_inputs(self._rows(start, 1, inputs)) for cut in self._cuts]
        if name == "change":
            return [cut.of_weight(self._rows(start, outputs, inputs)) for cut in self._cuts]
        if name == "input_blocks":
            blocks = self._rows(start, inputs, int(self._packed.vectors.block_size[self._index]))
            return [
                blocks if cut.inputs is None else self._own_blocks(blocks, cut.inputs) for cut in self._cuts
            ]
        if name == "partner":
            self._check_partners(int(self._packed.vectors.distance[self._index]))
        own = [cut.of_outputs(self._rows(start, 1, outputs)) for cut in self._cuts]
        if name == "constant" and self._cuts[0].inputs is not None:
            own[1:] = [torch.zeros_like(part) for part in own[1:]]
        return own

    def _own_blocks(self, blocks: torch.Tensor, inputs: range) -> torch.Tensor:
        """The part [own in, b] of Q, whose blocks begin anew at the first of the rank's inputs.

        Blocks are wider than what is mixed in them, so they may be cut where nothing is.
        """
        size, row = blocks.shape[1], torch.arange(len(inputs))[:, None]
        whole_row = row + inputs.start
        whole_column = row // size * size + torch.arange(size) + inputs.start
        there = (whole_column // size == whole_row // size) & (whole_column < inputs.stop)
        own = torch.where(there, blocks[whole_row, whole_column % size], 0)
        if own.count_nonzero() != blocks[inputs.start : inputs.stop].count_nonzero():
            self._refuse("inputs")
        return own

    def _check_partners(self, distance: int) -> None:
        edges = (edge for cut in self._cuts for part in cut.outputs or () for edge in (part.start, part.stop))
        if any(edge % (2 * distance) for edge in edges):
            self._refuse("outputs")

    def _refuse(self, what: str) -> None:
        module, size = self._module.name, len(self._cuts)
        raise ArtifactError(
            [f"it mixes {what} of {module} that --tensor-parallel-size {size} gives to different ranks"]
        )

    def _rows(self, start: int, rows: int, features: int) -> torch.Tensor:
        """Rows of the adapter's own data [rows, features], without what fills up their pages."""
        length = page_length(features)
        return self._packed.data[start : start + rows * length].view(rows, length)[:, :features]


class _Pages:
    """Lays out the parts of all ranks, one after the other, in the same places."""

    def __init__(self, ranks: int, dtype: torch.dtype) -> None:
        self._pieces: list[Rows] = [[] for _ in range(ranks)]
        self._dtype = dtype
        self._position = 0

    def put(self, rows: Rows) -> int:
        """Lay out matrices of one shape [r, n], each row a page; where they begin."""
        count, features = rows[0].shape
        padded = [torch.zeros(count, page_length(features), dtype=self._dtype) for _ in rows]
        for page, part in zip(padded, rows, strict=True):
            page[:, :features] = part
        return self._append([page.flatten() for page in padded])

    def put_run(self, run: torch.Tensor) -> int:
        """Lay out what only rank 0 has."""
        return self.put_runs([run, *[torch.zeros_like(run)] * (len(self._pieces) - 1)])

    def put_runs(self, runs: Rows) -> int:
        """Lay out runs of one length, from a page's start to a page's end."""
        behind = page_length(len(runs[0])) - len(runs[0])
        return self._append([torch.nn.functional.pad(run, (0, behind)) for run in runs])

    def data(self) -> torch.Tensor:
        """What was laid out: flat, one rank after the other."""
        return torch.cat([piece for pieces in self._pieces for piece in pieces])

    def _append(self, runs: Rows) -> int:
        start, self._position = self._position, self._position + len(runs[0])
        for pieces, run in zip(self._pieces, runs, strict=True):
            pieces.append(run)
        return start


_KINDS = ("gain", "constant", "input_gain", "partner", "change", "input_blocks")


def _absent(vectors: VectorPages | None) -> VectorPages | None:
    """The tables, nothing being laid out yet."""
    return None if vectors is None else vectors.each(lambda table: np.full_like(table, -1))


def _start_of(vocabulary: VocabularyPages, end: int) -> int:
    """Where the first of an adapter's tables begins, behind its modules."""
    tables = [pages for pages in (vocabulary.embedding, vocabulary.head) if pages is not None]
    starts = [start for pages in tables for start in (pages.rows, pages.a, pages.b)]
    if vocabulary.classes is not None:
        starts.append(vocabulary.classes.start)
    return min(starts, default=end)
