"""The pool of rank pages: one flat tensor in which every resident adapter has one run of elements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from manylora.adapters.errors import AdapterTooLarge, ArtifactError
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.faults import some
from manylora.adapters.format.update import NoUpdate
from manylora.adapters.format.vocabulary.changes import VocabularyDelta
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.format.weights.soft_prompt import SoftPrompt
from manylora.server.kernels.buffers import zeros
from manylora.server.kernels.inputs import (
    PAGE_ALIGN,
    AdapterPages,
    BaseWeights,
    Int32,
    Int64,
    PromptPages,
    VectorPages,
    VocabularyPages,
    page_length,
)
from manylora.server.model.pages.packing import FoldedModule, ZeroNorm, elements, fold
from manylora.server.model.pages.space import PageSpace
from manylora.server.model.pages.tables import BaseTables, pack_vocabulary, place
from manylora.server.model.pages.uploads import Upload, upload_for

_NEGLIGIBLE = 1e-6  # gains and constants of an untrained DoRA: rounding


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """An adapter laid out as it will lie in the pool, offsets counted from its own start."""

    digest: str
    data: torch.Tensor  # flat, pool dtype, on the CPU; of several ranks, one after the other
    offset: Int64  # [M]
    rank: Int32  # [M]
    activation: tuple[int, ...] | None = None  # the tokens that switch it on (aLoRA)
    vectors: VectorPages | None = None  # here -1 where a module has none
    vocabulary: VocabularyPages | None = None
    stated_rank: int = 0  # the largest that the config states; rank pages may be more
    prompt: PromptPages | None = None


class Shards(Protocol):
    """The ranks that each have a part of the base, and in a pool like this one their parts of adapters."""

    @property
    def count(self) -> int:
        """How many there are, this one included."""

    def divide(self, packed: PackedAdapter) -> PackedAdapter:
        """The adapter with the data of all ranks, and the places in it that they have in common.

        Raises:
            ArtifactError: it can't be divided.
        """

    def send(self, start: int, parts: Sequence[torch.Tensor]) -> None:
        """Put the parts of the other ranks into their pools, from element ``start`` on; then it returns."""


class PagePool:
    """The flat tensor behind all resident adapters, of at most ``capacity`` bytes.

    Its first page is zero and stays so: absent pages point there. Only elements of a reserved run
    that no sequence refers to are ever written, and behind every step that was launched with the former ones,
    so writing needs no lock against a running step.
    """

    def __init__(
        self,
        modules: Sequence[TargetModule],
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        base: BaseWeights | None = None,
        *,
        tables: BaseTables | None = None,
        upload: Upload | None = None,
        shards: Shards | None = None,
        taken: Callable[[VectorPages | None], None] | None = None,
    ) -> None:
        """``base`` holds the weights of ``modules``; without it only plain LoRA and IA3 can be packed.

        ``tables`` are the base's embeddings and head; without them no adapter may change those. ``upload``
        sends pages; None is the way that suits ``device``. With ``shards`` sizes in bytes are those of all
        ranks together. ``taken`` raises
        ArtifactError for adapters that are not served here, by their vectors, -1 where there are none.
        """
        self.modules = tuple(modules)
        self._base = base
        self._tables = tables
        widest = max((max(m.in_features, m.out_features) for m in modules), default=PAGE_ALIGN)
        zero = page_length(widest)
        self._shards = shards
        self._taken = taken
        self._ranks = 1 if shards is None else shards.count
        elements = max(capacity // dtype.itemsize // self._ranks, zero)
        self.data = zeros((elements,), dtype, device)
        self._upload = upload_for(device) if upload is None else upload
        self._space = PageSpace(zero, elements)

    @property
    def capacity_bytes(self) -> int:
        return self._space.capacity * self._ranks * self.data.element_size()

    @property
    def used_bytes(self) -> int:
        return self._space.used * self._ranks * self.data.element_size()

    def reserve(self, packed: PackedAdapter) -> AdapterPages | None:
        """Take room for ``packed``; None when there is no free run of its size."""
        start = self._space.reserve(packed.data.numel() // self._ranks)
        if start is None:
            return None
        offset = np.where(packed.rank > 0, packed.offset + start, 0)
        return AdapterPages(
            packed.digest,
            offset,
            packed.rank,
            start,
            packed.activation,
            None if packed.vectors is None else _placed(packed.vectors, start),
            None if packed.vocabulary is None else place(packed.vocabulary, start),
            None if packed.prompt is None else replace(packed.prompt, start=start + packed.prompt.start),
        )

    def would_fit(self, packed: PackedAdapter, without: Iterable[AdapterPages]) -> bool:
        """Whether there would be room for ``packed`` if those pages were released."""
        return self._space.would_fit(packed.data.numel() // self._ranks, (pages.start for pages in without))

    def write(self, pages: AdapterPages, packed: PackedAdapter) -> None:
        """Copy the pages in. Any thread may call this, once, before the pages are used."""
        own = packed.data
        if self._shards is not None:
            own, *others = packed.data.chunk(self._ranks)
            self._shards.send(pages.start, others)
        self._upload.send(own, self.data[pages.start : pages.start + own.numel()])

    def release(self, pages: AdapterPages) -> int:
        """Give the room back; returns the bytes freed."""
        return self._space.release(pages.start) * self._ranks * self.data.element_size()

    def pack(
        self,
        digest: str,
        deltas: Mapping[str, ModuleDelta],
        activation: tuple[int, ...] | None = None,
        *,
        vocabulary: VocabularyDelta | None = None,
        prompt: SoftPrompt | None = None,
    ) -> PackedAdapter:
        """Lay an adapter out; what is folded in is so in fp32, before the one rounding to the pool dtype.

        Raises:
            ArtifactError: magnitudes that no weight of this base can have (see :class:`ZeroNorm`),
                tensors that give no update, magnitudes, biases and updates that change nothing, or parts that
                this server takes from no adapter.
            AdapterTooLarge: an adapter with updates would take more than all of the pool.
        """
        parts = [(i, deltas[m.name]) for i, m in enumerate(self.modules) if m.name in deltas]
        size = sum(elements(delta, self.modules[i], i, self._base) for i, delta in parts)
        updates = any(delta.update is not None for _, delta in parts)
        if updates:
            self.check_size(size * self.data.element_size())  # may be far more than what the files hold
        layout = _Layout(torch.zeros(size, dtype=self.data.dtype), len(self.modules))
        broken: dict[str, list[str]] = {}
        for index, delta in parts:
            try:
                layout.place(index, fold(delta, index, self._base))
            except ZeroNorm:
                reason = "DoRA's magnitudes have no direction: rows of W + BA are zero"
                broken.setdefault(reason, []).append(self.modules[index].name)
            except NoUpdate as error:
                broken.setdefault(str(error), []).append(self.modules[index].name)
        if broken:
            raise ArtifactError([f"{reason} in {some(n, len(n))}" for reason, n in broken.items()])
        stated_rank = max((delta.stated_rank for _, delta in parts), default=0)
        packed = replace(layout.finish(digest, activation), stated_rank=stated_rank)
        self.check_taken(packed)
        packed = self._with_vocabulary(packed, vocabulary)
        if self.data.dtype == torch.float16 and not bool(packed.data.isfinite().all()):
            raise ArtifactError(["it has values beyond what float16 holds; --dtype bf16 and fp32 hold them"])
        judged_here = updates or packed.vectors is not None or (vocabulary is not None and not deltas)
        if judged_here and packed.vocabulary is None and self._idle(packed, layout):
            raise ArtifactError(["the adapter would do nothing on this base (was it trained?)"])
        packed = packed if prompt is None else self._with_prompt(packed, prompt)
        return packed if self._shards is None else self._shards.divide(packed)

    def check_taken(self, packed: PackedAdapter) -> None:
        """Raise :class:`ArtifactError` if this server does not take an adapter that was packed before."""
        if self._taken is not None:
            self._taken(packed.vectors)

    @property
    def num_ranks(self) -> int:
        """Ranks among which adapters are divided."""
        return self._ranks

    def check_size(self, nbytes: int) -> None:
        """Raise :class:`AdapterTooLarge` if an adapter of that size fits in no empty pool either."""
        if nbytes > self.capacity_bytes:
            raise AdapterTooLarge(
                f"this adapter needs {nbytes} bytes of adapter memory, the server has "
                f"{self.capacity_bytes} (--adapter-memory)"
            )

    def _idle(self, packed: PackedAdapter, layout: _Layout) -> bool:
        """Whether an adapter's vectors and matrices do nothing, and it has no A or no B either."""
        if layout.changes or layout.largest > _NEGLIGIBLE:
            return False
        for module, offset, rank in zip(self.modules, packed.offset, packed.rank, strict=True):
            start = int(offset + rank * page_length(module.in_features))
            end = start + int(rank) * page_length(module.out_features)
            if packed.data[start:end].any() and packed.data[int(offset) : start].any():
                return False
        return True

    def _with_vocabulary(self, packed: PackedAdapter, delta: VocabularyDelta | None) -> PackedAdapter:
        """The adapter with its tables behind its modules."""
        if delta is None:
            return packed
        assert self._tables is not None, "an adapter's tables are compared with the base's"
        own = pack_vocabulary(delta, self._tables, self.data.dtype)
        if own is None:
            return packed
        start = len(packed.data)
        data = torch.zeros(page_length(start + own.elements), dtype=self.data.dtype)
        data[:start] = packed.data
        return replace(packed, data=data, vocabulary=own.put(data, start))

    def _with_prompt(self, packed: PackedAdapter, prompt: SoftPrompt) -> PackedAdapter:
        """The adapter with its virtual tokens behind everything else."""
        (count, width), start = prompt.values.shape, len(packed.data)
        data = torch.zeros(page_length(start + count * width), dtype=self.data.dtype)
        data[:start] = packed.data
        data[start : start + count * width].view(count, width).copy_(prompt.values)
        return replace(packed, data=data, prompt=PromptPages(count, width, start, prompt.in_cache))

    def check(self) -> None:
        """Assert the allocator's invariants."""
        self._space.check()


class _Layout:
    """Writes one module after the other into ``data``."""

    def __init__(self, data: torch.Tensor, modules: int) -> None:
        self._data = data
        self._position = 0
        self._offset = np.zeros(modules, np.int64)
        self._rank = np.zeros(modules, np.int32)
        self._vectors = VectorPages(
            *(np.full(modules, -1, np.int64) for _ in range(6)),
            *(np.zeros(modules, np.int64) for _ in range(2)),
        )
        self._plain = True
        self.largest = 0.0  # magnitude of an element of any vector
        self.changes = False  # whether any matrix of changes is not zero

    def place(self, index: int, part: FoldedModule) -> None:
        """Lay out what an adapter has for the next module."""
        if part.a.shape[0]:
            self._offset[index], self._rank[index] = self._position, part.a.shape[0]
            self._put(part.a)
            self._put(part.b)
        self._put_vector(index, self._vectors.gain, part.gain)
        self._put_vector(index, self._vectors.constant, part.constant)
        self._put_vector(index, self._vectors.input_gain, part.input_gain)
        self._put_vector(index, self._vectors.partner, part.partner)
        self._vectors.distance[index] = part.distance
        self._put_matrix(index, self._vectors.change, part.change)
        self._put_matrix(index, self._vectors.input_blocks, part.input_blocks)
        if part.input_blocks is not None:
            self._vectors.block_size[index] = part.input_blocks.shape[1]

    def finish(self, digest: str, activation: tuple[int, ...] | None) -> PackedAdapter:
        """The adapter, once all modules are placed."""
        assert self._position == self._data.numel()
        vectors = None if self._plain else self._vectors
        return PackedAdapter(digest, self._data, self._offset, self._rank, activation, vectors)

    def _put_vector(self, index: int, offsets: Int64, vector: torch.Tensor | None) -> None:
        if vector is not None:
            self._plain = False
            self.largest = max(self.largest, float(vector.abs().max()))
            offsets[index] = self._position
            self._put(vector[None])

    def _put_matrix(self, index: int, offsets: Int64, matrix: torch.Tensor | None) -> None:
        if matrix is not None:
            self._plain = False
            self.changes = self.changes or bool(matrix.any())
            offsets[index] = self._position
            self._put(matrix)

    def _put(self, rows: torch.Tensor) -> None:
        """Write ``rows`` [r, n] as r padded pages."""
        length = page_length(rows.shape[1])
        end = self._position + rows.shape[0] * length
        self._data[self._position : end].view(rows.shape[0], length)[:, : rows.shape[1]] = rows
        self._position = end


def _placed(vectors: VectorPages, start: int) -> VectorPages:
    """Offsets from an adapter's start to offsets in the pool."""
    return vectors.each(lambda table: np.where(table >= 0, table + start, 0))
