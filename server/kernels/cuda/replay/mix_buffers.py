"""What steps that are replayed read of adapters: tables and embeddings in memory that stays in place."""

from __future__ import annotations

from typing import Protocol

import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.mixes import VECTORS, LoraTables, page_tables, total_rank, vector_table
from manylora.server.kernels.cuda.replay.pinned_arrays import Mirror
from manylora.server.kernels.inputs import AdapterPages, EmbeddedRows, LoraInputs
from manylora.server.kernels.reference.lora import same_mixes

MAX_RANK = 256  # the largest sum of ranks of a sequence's mix
_ENTRIES = 4  # members of mixes a sequence, on average


class Adapters(Protocol):
    """Which adapters a graph computes."""

    def all_of(self, lora: LoraInputs | None) -> bool:
        """Whether all of a step's are such ones."""

    def scaled(self, lora: LoraInputs) -> bool:
        """Whether any of these has input gains."""


class PlainAdapters:
    """Those with rank pages only."""

    @staticmethod
    def all_of(lora: LoraInputs | None) -> bool:
        return lora is None or all(pages.vectors is None for pages in lora.adapters)

    @staticmethod
    def scaled(lora: LoraInputs) -> bool:
        del lora
        return False


def fits(lora: LoraInputs | None, sequences: int, takes: Adapters) -> bool:
    """Whether buffers for so many sequences have room for a step's mixes, all of adapters that are taken."""
    return lora is None or (
        len(lora.adapter) <= _ENTRIES * sequences and total_rank(lora) <= MAX_RANK and takes.all_of(lora)
    )


class MixBuffers:
    """The mixes of a step; those of sequences that it does not have are empty."""

    def __init__(self, sequences: int, modules: int, device: torch.device) -> None:
        """Adapters are of ``modules``, norms included."""
        entries = _ENTRIES * sequences
        self._mixes = Mirror(
            {
                "start": ((sequences + 1,), torch.int32),
                "adapter": ((entries,), torch.int32),
                "weight": ((entries,), torch.float32),
                "offset": ((entries, modules), torch.int64),
                "rank": ((entries, modules), torch.int32),
            },
            device,
        )
        self._vectors = Mirror(dict.fromkeys(VECTORS, ((entries, modules), torch.int32)), device)
        self._last: LoraInputs | None = None
        self._with_vectors = 0  # adapters that the tables of vectors were filled for
        self.tables = LoraTables(**self._mixes.device, **self._vectors.device)

    def fill(self, lora: LoraInputs | None) -> bool:
        """Send those of a step; False: nothing was sent, as they are there already, or none are read."""
        if lora is None or (self._last is not None and same_mixes(self._last, lora)):
            return False
        self._mixes.wait()
        here, entries, adapters = self._mixes.host, len(lora.adapter), len(lora.adapters)
        here["start"][: len(lora.start)] = lora.start
        here["start"][len(lora.start) :] = entries
        here["adapter"][:entries] = lora.adapter
        here["weight"][:entries] = lora.weight
        here["offset"][:adapters], here["rank"][:adapters] = page_tables(lora.adapters, here["rank"].shape[1])
        self._mixes.send()
        self._fill_vectors(lora.adapters)
        self._last = lora
        return True

    def _fill_vectors(self, adapters: tuple[AdapterPages, ...]) -> None:
        """Their tables are sent only where there are any, or were."""
        last = max((i + 1 for i, pages in enumerate(adapters) if pages.vectors is not None), default=0)
        if not last and not self._with_vectors:
            return
        self._vectors.wait()
        for name, table in self._vectors.host.items():
            table[:last] = vector_table(adapters[:last], name, table.shape[1]) if last else 0
            table[last : self._with_vectors] = 0
        self._vectors.send()
        self._with_vectors = last


class GivenRows:
    """Embeddings of a step's rows that are given instead of looked up."""

    def __init__(self, rows: int, like: torch.Tensor) -> None:
        """``like`` [.., D] is what embeddings are like."""
        self._values = like.new_zeros(rows, like.shape[-1])
        self._mask = torch.zeros(rows, 1, dtype=torch.bool, device=like.device)

    def fill(self, embedded: EmbeddedRows | None) -> None:
        """Send those of a step that has any."""
        if embedded is not None:
            rows = sent(embedded.rows, self._values.device)
            self._values.index_copy_(0, rows, embedded.values.to(self._values.dtype))
            self._mask.zero_().index_fill_(0, rows, True)

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """The embeddings ``x`` [T, D] with those that are given in their places."""
        return torch.where(self._mask, self._values, x)
