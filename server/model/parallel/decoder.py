"""The decoder of a model that is divided between ranks, as rank 0 serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from manylora.adapters.format.base import CacheShape, TargetModule
from manylora.server.kernels.capturing import Capturing
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.ranks import Ranks
from manylora.server.kernels.weights import MergedWeights
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.model.parallel.leader import Leader
from manylora.server.model.parallel.parts.loading import Share, WholeModel
from manylora.server.model.parallel.parts.sharding import Cut, Sharding
from manylora.server.model.parallel.parts.splitting import Splitter
from manylora.server.model.parallel.setup import RankSetup


class ParallelDecoder:
    """Rank 0's part, which the other ranks follow; towards everybody else the decoder of the whole model."""

    name = "fused"

    def __init__(
        self, setup: RankSetup, share: Share, whole: WholeModel, leader: Leader, ranks: Ranks
    ) -> None:
        """Of rank 0's ``share`` of the ``whole``; ``leader`` tells the other ranks.

        Raises:
            ConfigError: native kernels were asked for and can't run here.
        """
        self._leader = leader
        self._whole = whole
        self._merged: int | None = None  # number of the copy that the step runs on
        self._begun = False  # whether the others are in a step
        self._local = FusedDecoder(
            share.hf,
            share.max_model_len,
            setup.kernels,
            coded_cache=setup.coded_cache,
            ranks=ranks,
            tell=self._begin,
        )
        self._shardings = [replace(share.sharding, rank=rank) for rank in range(setup.count)]
        self._cuts = [sharding.of_modules(self._local.weights) for sharding in self._shardings]
        self.modules = whole.modules
        self.tables = whole.tables(self._local.weights.embedding)
        self.vocab_size = self._local.vocab_size
        self.shards = DividedPages(self.modules, self._cuts, self._shardings, leader)

    @property
    def kernels(self) -> str:
        return self._local.kernels

    @property
    def kernels_note(self) -> str:
        return f"{self._local.kernels_note}; on {len(self._shardings)} ranks"

    @property
    def cache_shape(self) -> CacheShape | None:
        whole, local = self._shardings[0], self._local.cache_shape
        return CacheShape(local.layers, whole.kv_heads, whole.head_dim)

    @property
    def kv_bytes_per_block(self) -> int:
        """Bytes on each rank."""
        return self._local.kv_bytes_per_block

    def weight(self, module: int) -> torch.Tensor:
        """See :class:`Decoder`; read from the files, on the CPU."""
        return self._whole.weight(module)

    def bias(self, module: int) -> torch.Tensor | None:
        """See :class:`Decoder`."""
        return self._whole.bias(module)

    def allocate(self, pool: torch.Tensor, num_blocks: int, max_rows: int) -> None:
        """See :class:`Decoder`; of ``pool`` each rank has as many elements.

        Raises:
            ConfigError: another rank has no memory for it.
        """
        self._local.allocate(pool, num_blocks, max_rows)
        self._leader.allocate(pool, num_blocks, max_rows)

    @property
    def merge_groups(self) -> Sequence[tuple[int, ...]]:
        return self._local.merge_groups

    def merged(self) -> MergedWeights:
        return ParallelMerged(
            self._local.merged(), self._leader, self._cuts, self._local.weights.embedding.device
        )

    def step(self, inputs: StepInputs) -> torch.Tensor:
        """See :class:`Decoder`.

        Raises:
            RanksLost: the ranks are out of step, or gone: no further step can run.
        """
        merged = inputs.merged
        if isinstance(merged, ParallelMerged):
            self._merged, inputs = merged.number, replace(inputs, merged=merged.local)
        else:
            self._merged = None
        try:
            logits = self._local.step(inputs)
        except Exception as error:
            if not self._begun:
                raise
            raise self._leader.fail(f"a step failed while other ranks were in it: {error}") from error
        self._begun = False
        return logits

    def _begin(self, inputs: StepInputs) -> None:
        self._begun = True
        self._leader.begin(inputs, self._merged)

    @property
    def draw(self) -> Draw:
        return self._local.draw

    @property
    def capturing(self) -> Capturing | None:
        own = self._local.capturing
        return None if own is None else _Following(own, self._leader)

    def take_over(self, model: Any) -> None:
        """See :class:`Decoder`; ``model`` is rank 0's part. The other ranks have let go of theirs."""
        self._local.take_over(model)

    @property
    def weight_bytes(self) -> int:
        """Bytes on all ranks together."""
        return self._local.weight_bytes * len(self._shardings)


class DividedPages:
    """Where the pages of adapters go: to each rank its own. Implements the pool's ``Shards``."""

    def __init__(
        self,
        modules: Sequence[TargetModule],
        cuts: Sequence[Sequence[Cut]],
        shardings: Sequence[Sharding],
        leader: Leader,
    ) -> None:
        self.count = len(shardings)
        self._splitter = Splitter(modules, cuts, shardings)
        self._leader = leader

    def divide(self, packed: PackedAdapter) -> PackedAdapter:
        """See :class:`Shards`."""
        return self._splitter.divide(packed)

    def send(self, start: int, parts: Sequence[torch.Tensor]) -> None:
        """See :class:`Shards`."""
        self._leader.write(start, parts)


class ParallelMerged:
    """Merged weights, of which each rank has its part."""

    def __init__(
        self,
        local: MergedWeights,
        leader: Leader,
        cuts: Sequence[Sequence[Cut]],
        device: torch.device,
    ) -> None:
        """``local`` are rank 0's, on its ``device``."""
        self.local = local
        self.number = leader.number(self)
        self._leader = leader
        self._cuts = cuts
        self._device = device

    @property
    def nbytes(self) -> int:
        """Bytes on all ranks together."""
        return self.local.nbytes * len(self._cuts)

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        """See :class:`MergedWeights`."""
        parts, shifts = [], []
        for rank, cuts in enumerate(self._cuts):
            own = [cuts[module] for module in modules]
            parts.append([_weight(cut, weight) for cut, weight in zip(own, weights, strict=True)])
            shifts.append([_bias(cut, bias, rank) for cut, bias in zip(own, biases, strict=True)])
        self._leader.put(self.number, modules, parts[1:], shifts[1:])
        here = [part.contiguous().to(self._device) for part in parts[0]]
        self.local.put(modules, here, [None if b is None else b.to(self._device) for b in shifts[0]])


class _Following:
    """Captured steps of all ranks."""

    def __init__(self, own: Capturing, leader: Leader) -> None:
        self._own = own
        self._leader = leader

    @property
    def num_failed(self) -> int:
        """See :class:`Capturing`; of rank 0."""
        return self._own.num_failed

    def sizes(self, rows: int, context: int) -> list[tuple[int, int]]:
        """See :class:`Capturing`."""
        return self._own.sizes(rows, context)

    def chunks(self, rows: int, sequences: int, context: int) -> list[list[int]]:
        """See :class:`Capturing`."""
        return self._own.chunks(rows, sequences, context)

    def restart(self) -> None:
        """See :class:`Capturing`."""
        self._leader.capturing("restart")
        self._own.restart()

    def seal(self) -> None:
        """See :class:`Capturing`."""
        self._leader.capturing("seal")
        self._own.seal()


def _weight(cut: Cut, weight: torch.Tensor) -> torch.Tensor:
    """The part of W [out, in], or of a norm's w [D]."""
    return cut.of_weight(weight) if weight.dim() == 2 else cut.of_outputs(weight)


def _bias(cut: Cut, bias: torch.Tensor | None, rank: int) -> torch.Tensor | None:
    """The part of b [out]; what is added to a sum of all ranks is rank 0's."""
    if bias is None:
        return None
    own = cut.of_outputs(bias)
    return own if cut.inputs is None or rank == 0 else torch.zeros_like(own)
