"""The adapter work of a step as the fused layers take it."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.lora import TiledPages, groups_of, tiles_of
from manylora.server.kernels.cuda.mixes import LoraTables, lora_tables, total_rank
from manylora.server.kernels.inputs import AdapterPages, LoraInputs, StepInputs
from manylora.server.kernels.reference.lora import split_rows
from manylora.server.kernels.weights import DecoderWeights


@dataclass(frozen=True)
class RowMixes:
    """The mixes of the rows of a step, on the device."""

    pool: torch.Tensor
    tables: LoraTables
    sequences: torch.Tensor  # [T] int32: the sequence of each row
    groups: torch.Tensor | None  # [T, 3] int32 of rows that decode; see ``mix_kernels.py``
    capacity: int  # the largest sum of ranks that a sequence's mix has in a module
    tiles: TiledPages | None  # rank pages are multiplied tile by tile; None: in groups, inside other kernels
    scaled: bool = False  # some of its adapters have input gains


class Takes:
    """Which adapters the fused layers compute: rank pages, gains, constants, and input gains of ``down``."""

    def __init__(self, weights: DecoderWeights) -> None:
        downs = {weights.modules_of(layer, "down")[0] for layer in range(len(weights.layers))}
        self.modules = weights.norm_modules(len(weights.layers)).stop  # with the norms
        self._others = np.array([module not in downs for module in range(self.modules)])
        self._known: WeakKeyDictionary[AdapterPages, tuple[bool, bool]] = WeakKeyDictionary()

    def all_of(self, lora: LoraInputs | None) -> bool:
        """Whether every adapter of a step is such a one."""
        return lora is None or all(self._look(pages)[0] for pages in lora.adapters)

    def scaled(self, lora: LoraInputs) -> bool:
        """Whether any of these adapters has input gains."""
        return any(self._look(pages)[1] for pages in lora.adapters)

    def _look(self, pages: AdapterPages) -> tuple[bool, bool]:
        if pages not in self._known:
            self._known[pages] = self._of(pages)
        return self._known[pages]

    def _of(self, pages: AdapterPages) -> tuple[bool, bool]:
        vectors = pages.vectors
        if vectors is None:
            return True, False
        odd = vectors.change.any() or vectors.partner.any() or vectors.input_blocks.any()
        elsewhere = vectors.input_gain[: self.modules][self._others].any()
        return not odd and not elsewhere, bool(vectors.input_gain.any())


def row_mixes(pool: torch.Tensor, inputs: StepInputs, modules: int, takes: Takes) -> RowMixes | None:
    """Those of a step over so many modules, all of whose adapters are taken; None if all run the base."""
    lora = inputs.lora
    if lora is None:
        return None
    counts = np.diff(inputs.query_start)
    tables, capacity = lora_tables(lora, modules, pool.device), total_rank(lora)
    decoding, groups, tiles = bool((counts == 1).all()), None, None
    if decoding:
        groups = sent(groups_of(lora, len(counts)), pool.device)
    else:
        segments, _ = split_rows(lora, inputs.query_start, 1)
        tiles = TiledPages(pool, tables, capacity, sent(tiles_of(segments), pool.device), vectors=True)
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return RowMixes(
        pool=pool,
        tables=tables,
        sequences=sent(owner, pool.device),
        groups=groups,
        capacity=capacity,
        tiles=tiles,
        scaled=takes.scaled(lora),
    )
