"""OFT: blocks of a module's inputs are rotated before they meet W (https://arxiv.org/abs/2306.07280).

W' = W Rᵀ with a block-diagonal R, each block made from a skew-symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.orthogonal.rotations import (
    MAX_TERMS,
    bounded,
    cayley,
    cayley_series,
    skew,
)
from manylora.adapters.format.kinds.plans import slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight
from manylora.adapters.format.update import InputBlocks, KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class Oft:
    """What a config of OFT says."""

    blocks: int  # of a module; 0: ``size`` says it
    size: int  # inputs in a block; 0: ``blocks`` says it
    shared: bool  # whether one block is stored for all
    terms: int | None  # of the series; None: the exact transform
    eps: float | None  # of COFT; None: no bound

    def lay_out(self, targets: Sequence[TargetModule], _faults: Faults, /) -> KindLayout:
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        size = block_size(module.in_features, self.blocks, self.size)
        count = 1 if self.shared else module.in_features // size
        slots = {"upper": slot(module, "oft_R.weight", count, size * (size - 1) // 2)}
        return ModulePlan(slots, partial(self._update, module, size))

    def _update(self, module: TargetModule, size: int, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        rotation = partial(self.rotation, tensors["upper"], size)
        update = DenseOfWeight(module, lambda weight: rotated(weight, rotation()))
        return InputBlocks(update, size, lambda: _changes(rotation(), module.in_features // size))

    def rotation(self, upper: torch.Tensor, size: int) -> torch.Tensor:
        """The blocks of R, [n, size, size] float32, from [n, size (size - 1) / 2]: x is replaced by x R."""
        matrix = skew(upper, size)
        if self.eps is not None:
            matrix = bounded(matrix, self.eps)
        return cayley(matrix) if self.terms is None else cayley_series(matrix, self.terms)


def _changes(rotation: torch.Tensor, count: int) -> torch.Tensor:
    """R - I of ``count`` blocks."""
    return (rotation - torch.eye(rotation.shape[-1])).expand(count, -1, -1)


def rotated(weight: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """W (R - I)ᵀ for W [out, in] and the blocks of R [in / size or 1, size, size]."""
    change = rotation - torch.eye(rotation.shape[-1])
    blocks = weight.unflatten(1, (-1, rotation.shape[-1]))
    return torch.einsum("obc,bkc->obk", blocks, change.expand(blocks.shape[1], -1, -1)).flatten(1)


def block_size(width: int, blocks: int, size: int) -> int:
    """Inputs in a block, for a config with r = ``blocks`` or oft_block_size = ``size``, the other one 0."""
    return divisor_near(width, size) if size else width // divisor_near(width, blocks)


def divisor_near(width: int, wanted: int) -> int:
    """The divisor of ``width`` that PEFT takes for a block size or a number of blocks: the nearest one.

    Of two that are as near it is the smaller.
    """
    if wanted >= width:
        return width
    above = next(n for n in range(wanted, width + 1) if width % n == 0)
    below = next(n for n in range(wanted, 0, -1) if width % n == 0)
    return below if wanted - below <= above - wanted else above


def _parse(reader: ConfigReader) -> Oft:
    if reader.value("oft_block_size", None) is None:
        reader.wrong("oft_block_size", "given: PEFT before 0.14 had another OFT, which is not served", None)
    blocks, size = (
        reader.count("r", 0, least=0, most=_ANY),
        reader.count("oft_block_size", 32, least=0, most=_ANY),
    )
    if (blocks == 0) == (size == 0):
        reader.wrong("oft_block_size", "0 where r is not, and else not 0", size)
        size = 1
    terms = reader.count("num_cayley_neumann_terms", 5, most=MAX_TERMS)
    return Oft(
        blocks,
        size,
        reader.flag("block_share"),
        terms if reader.flag("use_cayley_neumann", True) else None,
        reader.number("eps", 6e-5) if reader.flag("coft") else None,
    )


_ANY = 1 << 62  # PEFT takes the nearest divisor
_SERVED = Treatment.SERVED

OFT = WeightKind(
    "OFT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        Option("r", _SERVED, "blocks of a module, where oft_block_size is 0; the nearest divisor counts"),
        Option(
            "oft_block_size", _SERVED, "inputs in a block; the nearest divisor of a module's inputs counts"
        ),
        Option("block_share", _SERVED, "one block for all of a module"),
        Option("coft", _SERVED, "the rotations are bounded by eps"),
        Option("eps", _SERVED, "read with coft"),
        Option(
            "use_cayley_neumann",
            _SERVED,
            "the series in place of the exact transform, as PEFT computes it since 0.18",
        ),
        Option("num_cayley_neumann_terms", _SERVED, f"of the series, up to {MAX_TERMS}"),
        BIAS,
        no_effect("fan_in_fan_out", "inputs are rotated on Conv1D alike"),
        *training_only("module_dropout", "init_weights"),
    ),
    parse=_parse,
    endings=("oft_R.weight",),
    form="W (Rᵀ - I), R block-diagonal",
    rank="none: the blocks of R - I, where they are small",
    cost="a second product with the base's weights, for all such rows of a step together",
    strings_ignore_layers=True,
)
