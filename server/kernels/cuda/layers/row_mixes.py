"""The adapter work of a step as the fused layers take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.lora import TiledPages, groups_of, tiles_of
from manylora.server.kernels.cuda.mixes import LoraTables, lora_tables, total_rank
from manylora.server.kernels.inputs import AdapterPages, LoraInputs, ModuleShape, StepInputs
from manylora.server.kernels.reference.lora import split_rows
from manylora.server.kernels.weights import DecoderWeights


class Tiles(Protocol):
    """Rank pages that are multiplied tile by tile, as :class:`TiledPages`."""

    def add(self, module: int, shapes: Sequence[ModuleShape], x: torch.Tensor, y: torch.Tensor) -> None:
        """Add what mixes have in modules that share an input to ``y`` [T, out of all] in place."""


class NoTiles:
    """Those of rows without mixes: nothing is launched."""

    def add(self, module: int, shapes: Sequence[ModuleShape], x: torch.Tensor, y: torch.Tensor) -> None:
        del module, shapes, x, y


@dataclass(frozen=True)
class RowMixes:
    """The mixes of the rows of a step, on the device."""

    pool: torch.Tensor
    tables: LoraTables
    sequences: torch.Tensor  # [T] int32: the sequence of each row
    groups: torch.Tensor | None  # [T, 3] int32 of rows that decode; see ``mix_kernels.py``
    capacity: int  # the largest sum of ranks that a sequence's mix has in a module
    tiles: Tiles | None  # rank pages are multiplied tile by tile; None: in groups, inside other kernels
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


def row_mixes(
    pool: torch.Tensor, inputs: StepInputs, modules: int, takes: Takes, *, grouped: bool = True
) -> RowMixes | None:
    """Those of a step over so many modules, all of whose adapters are taken; None if all run the base.

    Rows are ``grouped`` where all of them decode; else they go tile by tile.
    """
    lora = inputs.lora
    if lora is None:
        return None
    counts = np.diff(inputs.query_start)
    tables, capacity = lora_tables(lora, modules, pool.device), total_rank(lora)
    groups, tiles = None, None
    if grouped and bool((counts == 1).all()):
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


def no_mixes(pool: torch.Tensor, tables: LoraTables, rows: int) -> RowMixes:
    """The mixes of rows without any, for which kernels are compiled as for rows that may have some."""
    nobody = torch.full((rows,), -1, dtype=torch.int32, device=pool.device)
    return RowMixes(pool, tables, nobody, groups=None, capacity=0, tiles=NoTiles())
