"""An adapter's vocabulary tables laid out for the pool: of a whole table only the rows that are new.

PEFT saves a copy of the base's table beside LoRA on embeddings, and all of a resized one. Rows are
recognized as the base's by a hash of their bits, so the base's own tables need not be kept for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from manylora.adapters.format.vocabulary.changes import TableDelta, VocabularyDelta
from manylora.server.kernels.inputs import ClassPages, Int64, TablePages, VocabularyPages

_CHUNK = 1 << 22  # elements looked at at a time


class BaseTables:
    """Hashes of the rows of the base's embeddings and head, made when they are first needed."""

    def __init__(self, embedding: torch.Tensor, head: torch.Tensor | Callable[[], torch.Tensor]) -> None:
        """``embedding`` and ``head`` [V, D]; one tensor where they are tied. ``head`` may read it."""
        self.tied = isinstance(head, torch.Tensor) and embedding.data_ptr() == head.data_ptr()
        self._tables: dict[str, torch.Tensor | Callable[[], torch.Tensor]] = {
            "embedding": embedding,
            "head": head,
        }
        self._hashes: dict[str, torch.Tensor] = {}

    def hashes(self, table: str) -> torch.Tensor:
        """A number [V] int64 for each row of "embedding" or "head"."""
        if table not in self._hashes:
            found = self._tables[table]
            self._hashes[table] = row_hashes(found if isinstance(found, torch.Tensor) else found())
        return self._hashes[table]

    def drop_head(self) -> None:
        """Keep the hashes only: the decoder has the head in another form."""
        if not self.tied and isinstance(self._tables["head"], torch.Tensor):
            self.hashes("head")
            del self._tables["head"]


def row_hashes(table: torch.Tensor) -> torch.Tensor:
    """A number for each row of ``table`` [V, D], equal for equal bits and practically only for those."""
    bits = table.detach().contiguous().view(torch.int16 if table.element_size() == 2 else torch.int32)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) | 1
    weight = weight.to(bits.device)
    rows = max(1, _CHUNK // bits.shape[1])
    parts = [(bits[i : i + rows].long() * weight).sum(1) for i in range(0, len(bits), rows)]
    return torch.cat(parts).cpu()


@dataclass(frozen=True)
class PackedTable:
    """One table's part of an adapter, in the pool's dtype."""

    tokens: Int64  # [n] ascending
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # replaced rows, A and B, as they will lie
    rank: int

    @property
    def elements(self) -> int:
        """Elements of the pool that it takes."""
        return sum(part.numel() for part in self.parts)

    def put(self, data: torch.Tensor, position: int) -> TablePages:
        """Write it to ``data`` at ``position``."""
        starts = []
        for part in self.parts:
            starts.append(position)
            data[position : position + part.numel()] = part.flatten()
            position += part.numel()
        return TablePages(self.tokens, starts[0], self.rank, starts[1], starts[2])


@dataclass(frozen=True)
class PackedVocabulary:
    """An adapter's embeddings and head laid out, before they have a place in the pool."""

    size: int
    tables: dict[str, PackedTable]  # "embedding", "head"
    classes: torch.Tensor | None  # [n, D] float32
    itemsize: int  # of the pool's dtype

    @property
    def elements(self) -> int:
        """Elements of the pool that they take."""
        return self._class_elements + sum(table.elements for table in self.tables.values())

    @property
    def _class_elements(self) -> int:
        return 0 if self.classes is None else self.classes.nbytes // self.itemsize

    def put(self, data: torch.Tensor, position: int) -> VocabularyPages:
        """Write them to ``data`` from ``position`` on, the start of a page."""
        pages = {}
        classes = None
        if self.classes is not None:  # first: float32 needs a place that is a multiple of its size
            end = position + self._class_elements
            data[position:end].view(torch.float32)[:] = self.classes.flatten()
            classes, position = ClassPages(len(self.classes), position), end
        for name, table in self.tables.items():
            pages[name] = table.put(data, position)
            position += table.elements
        return VocabularyPages(self.size, pages.get("embedding"), pages.get("head"), classes)


def pack_vocabulary(delta: VocabularyDelta, base: BaseTables, dtype: torch.dtype) -> PackedVocabulary | None:
    """What of ``delta`` differs from the base; None if nothing does."""
    packed = {}
    for name, table in (("embedding", delta.embedding), ("head", delta.head)):
        if table is not None:
            part = _pack(table, base.hashes(name), dtype, by_token=name == "embedding")
            if part.elements:
                packed[name] = part
    if not packed and delta.classes is None and delta.size <= len(base.hashes("embedding")):
        return None
    return PackedVocabulary(delta.size, packed, delta.classes, dtype.itemsize)


def _pack(delta: TableDelta, base: torch.Tensor, dtype: torch.dtype, *, by_token: bool) -> PackedTable:
    replaced: dict[int, torch.Tensor] = {}
    tokens: Int64 = np.empty(0, np.int64)
    rows = torch.empty(0, dtype=dtype)
    if delta.table is not None:
        stored = delta.table.to(dtype)
        differs = torch.ones(len(stored), dtype=torch.bool)
        differs[: len(base)] = row_hashes(stored[: len(base)]) != base
        tokens = np.flatnonzero(differs.numpy())
        rows = stored[differs]
    if delta.rows is not None:
        replaced = dict(zip(delta.tokens, delta.rows.to(dtype), strict=True))
        keep = ~np.isin(tokens, list(replaced))
        before = dict(zip(tokens[keep].tolist(), rows[torch.from_numpy(keep)], strict=True))
        merged = sorted({**before, **replaced}.items())
        tokens = np.array([token for token, _ in merged], np.int64)
        rows = torch.stack([row for _, row in merged])
    if delta.a is None or delta.b is None:
        return PackedTable(tokens, (rows, rows[:0], rows[:0]), 0)
    a, b = delta.a.float(), delta.b.T.float() * delta.scaling
    return PackedTable(tokens, (rows, (a.T if by_token else a).to(dtype), b.to(dtype)), delta.rank)


def place(pages: VocabularyPages, start: int) -> VocabularyPages:
    """Offsets from an adapter's start to offsets in the pool."""
    classes = pages.classes
    return VocabularyPages(
        pages.size,
        _placed(pages.embedding, start),
        _placed(pages.head, start),
        None if classes is None else ClassPages(classes.count, classes.start + start),
    )


def _placed(pages: TablePages | None, start: int) -> TablePages | None:
    if pages is None:
        return None
    return TablePages(pages.tokens, pages.rows + start, pages.rank, pages.a + start, pages.b + start)
