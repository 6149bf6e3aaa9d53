"""A decoder divided between threads in the place of processes: sums and joins without torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Barrier, Lock, Thread
from typing import Any

import numpy as np
import torch

from manylora.adapters.format.base import TargetModule
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.kernels.matrices import dense
from manylora.server.kernels.reference.step import norm_shapes, target_shapes
from manylora.server.kernels.weights import MATRICES, DecoderWeights, LayerWeights
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.model.parallel.parts.sharding import Cut, Sharding
from manylora.server.model.parallel.parts.splitting import Splitter
from tests.support.kernel_cases import Pages


@dataclass
class Meeting:
    """What the threads share. One runs at a time: Triton's interpreter is not made for several."""

    count: int
    turn: Lock = field(default_factory=Lock)
    given: dict[int, torch.Tensor] = field(default_factory=dict)
    sums: int = 0
    joins: int = 0

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.count, timeout=60)

    def run(self, parts: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
        """What the parts, one of each rank, make side by side."""
        made: dict[int, Any] = {}

        def work(rank: int) -> None:
            try:
                with self.turn:
                    made[rank] = parts[rank]()
            except BaseException as error:
                made[rank] = error
                self.barrier.abort()

        threads = [Thread(target=work, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for value in made.values():
            if isinstance(value, BaseException):
                raise value
        return [made[rank] for rank in range(self.count)]


@dataclass
class ThreadRanks:
    """One thread's view; implements the kernels' ``Ranks``."""

    rank: int
    vocab_size: int
    meeting: Meeting

    @property
    def count(self) -> int:
        """See :class:`Ranks`."""
        return self.meeting.count

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranks`."""
        assert x.is_contiguous()
        self.meeting.sums += self.rank == 0
        return x.copy_(torch.stack(self._exchange(x)).sum(0))

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranks`."""
        self.meeting.joins += self.rank == 0
        return torch.cat(self._exchange(logits), dim=1)

    def _exchange(self, mine: torch.Tensor) -> list[torch.Tensor]:
        meeting = self.meeting
        meeting.given[self.rank] = mine.clone()
        meeting.turn.release()
        try:
            meeting.barrier.wait()
            every = [meeting.given[rank] for rank in range(meeting.count)]
            meeting.barrier.wait()  # nobody gives the next before all have taken these
        finally:
            meeting.turn.acquire()
        return every


class Divided:
    """The parts of a decoder's weights, and of adapters for it."""

    def __init__(self, weights: DecoderWeights, count: int) -> None:
        self.meeting = Meeting(count)
        self.shardings = [
            Sharding(
                rank, count, weights.n_heads, weights.n_kv_heads, weights.head_dim, weights.intermediate,
                weights.vocab_size,
            )
            for rank in range(count)
        ]  # fmt: skip
        self.weights = [self._part(weights, sharding) for sharding in self.shardings]
        shapes = [*target_shapes(weights), *norm_shapes(weights)]
        modules = [
            TargetModule(str(i), s.in_features, s.out_features, linear=s.linear) for i, s in enumerate(shapes)
        ]
        self.splitter = Splitter(modules, [s.of_modules(weights) for s in self.shardings], self.shardings)

    def _part(self, weights: DecoderWeights, sharding: Sharding) -> DecoderWeights:
        rows = sharding.tokens
        return replace(
            weights,
            layers=tuple(_layer(layer, weights, sharding) for layer in weights.layers),
            lm_head=weights.lm_head[rows.start : rows.stop],
            n_heads=sharding.heads // sharding.count,
            n_kv_heads=len(sharding.own_kv_heads),
            intermediate=sharding.inner // sharding.count,
            ranks=ThreadRanks(sharding.rank, sharding.vocabulary, self.meeting),
        )

    def adapters(
        self, pages: Pages, whole: Sequence[AdapterPages]
    ) -> tuple[list[torch.Tensor], list[AdapterPages]]:
        """The pool of each rank with its parts of adapters that ``pages`` holds, and where they lie."""
        pools = [torch.zeros_like(pages.pool).float() for _ in self.shardings]
        placed, start = [], 1024
        for adapter in whole:
            packed = self.splitter.divide(packed_of(pages, adapter))
            for pool, part in zip(pools, packed.data.chunk(len(pools)), strict=True):
                pool[start : start + len(part)] = part
            placed.append(_placed(packed, start))
            start += len(packed.data) // len(pools)
        return pools, placed


def packed_of(pages: Pages, adapter: AdapterPages) -> PackedAdapter:
    """An adapter as it was before it got its place."""
    vectors = adapter.vectors
    return PackedAdapter(
        adapter.digest,
        pages.pool.float(),
        adapter.offset,
        adapter.rank,
        vectors=None if vectors is None else vectors.each(lambda table: np.where(table > 0, table, -1)),
    )


def _placed(packed: PackedAdapter, start: int) -> AdapterPages:
    vectors = packed.vectors
    return AdapterPages(
        packed.digest,
        np.where(packed.rank > 0, packed.offset + start, 0),
        packed.rank,
        vectors=None
        if vectors is None
        else vectors.each(lambda table: np.where(table >= 0, table + start, 0)),
    )


def _layer(layer: LayerWeights, weights: DecoderWeights, sharding: Sharding) -> LayerWeights:
    fields: dict[str, Any] = {}
    for name in MATRICES:
        cut = _joined(sharding.cuts(name, stacked=False), weights, name)
        fields[name] = cut.of_weight(dense(getattr(layer, name))).contiguous()
        bias = getattr(layer, f"{name}_bias")
        if bias is not None:
            own = cut.of_outputs(bias)
            fields[f"{name}_bias"] = (
                own if cut.inputs is None or sharding.rank == 0 else torch.zeros_like(own)
            )
    return replace(layer, **fields)


def _joined(cuts: Sequence[Cut], weights: DecoderWeights, name: str) -> Cut:
    """The cut of a matrix as a whole, by those of its modules, which lie below each other in it."""
    if cuts[0].inputs is not None:
        return cuts[0]
    q, kv = weights.n_heads * weights.head_dim, weights.n_kv_heads * weights.head_dim
    starts = (0, q, q + kv) if name == "qkv" else (0, weights.intermediate)
    parts = [(start, part) for start, cut in zip(starts, cuts, strict=True) for part in cut.outputs or ()]
    return Cut(outputs=tuple(range(start + part.start, start + part.stop) for start, part in parts))
