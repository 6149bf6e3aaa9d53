"""BOFT: inputs pass a chain of block rotations with permutations between (https://arxiv.org/abs/2311.06243).

W' = diag(s) W Rᵀ with R the product of the factors, each block-diagonal up to a permutation.
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
from manylora.adapters.format.kinds.orthogonal.rotations import cayley
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class Boft:
    """What a config of BOFT says."""

    blocks: int  # of a module; 0: ``size`` says it
    size: int  # inputs in a block; 0: ``blocks`` says it
    factors: int

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        unfit = [module for module in targets if not self._fits(module.in_features)]
        refuse(
            "boft_block_size, boft_block_num or boft_n_butterfly_factor does not divide the inputs of",
            unfit,
            faults,
        )
        return KindLayout({} if unfit else {module.name: self._plan(module) for module in targets})

    def _fits(self, width: int) -> bool:
        if width % (self.size or self.blocks):
            return False
        size, blocks = self._block(width)
        return self.factors == 1 or (size % 2 == 0 and blocks % (1 << (self.factors - 1)) == 0)

    def _block(self, width: int) -> tuple[int, int]:
        """Inputs in a block, and blocks."""
        size = self.size or width // self.blocks
        return size, width // size

    def _plan(self, module: TargetModule) -> ModulePlan:
        size, blocks = self._block(module.in_features)
        # Without a compiler of CUDA at hand PEFT trains one factor, whatever the config says.
        alone = (1, blocks, size, size)
        slots = {
            "blocks": slot(module, "boft_R", self.factors, blocks, size, size, others=(alone,)),
            "scale": slot(module, "boft_s", module.out_features, 1),
        }
        return ModulePlan(slots, partial(_update, module))


def _update(module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    return DenseOfWeight(
        module, lambda weight: rotated(weight, tensors["blocks"]) * tensors["scale"].float() - weight
    )


def rotated(weight: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """W Rᵀ for W [out, in] and ``stored`` [factors, blocks, size, size], whose skew part alone matters."""
    factors, blocks, size, _ = stored.shape
    flat = stored.float().flatten(0, 1)
    rotations = cayley((flat - flat.transpose(1, 2)) / 2).view(factors, blocks, size, size)
    result = weight
    for index in range(factors):
        order = torch.arange(result.shape[1])
        if factors > 1:
            order = butterfly_order(result.shape[1], blocks >> index, size // 2)
        # Row order[i] and column order[j] of the block-diagonal matrix are row i and column j of the factor.
        grouped = result[:, order.argsort()].unflatten(1, (blocks, size))
        result = torch.einsum("obk,bck->obc", grouped, rotations[index]).flatten(1)[:, order]
    return result


def butterfly_order(width: int, blocks: int, piece: int) -> torch.Tensor:
    """In each of ``blocks`` runs of ``width`` inputs: first the even pieces of that size, then the odd."""
    pieces = torch.arange(width).view(blocks, -1, piece)
    return torch.cat((pieces[:, 0::2], pieces[:, 1::2]), dim=1).flatten()


def _parse(reader: ConfigReader) -> Boft:
    size = reader.count("boft_block_size", 4, least=0, most=_ANY)
    blocks = reader.count("boft_block_num", 0, least=0, most=_ANY)
    if (blocks == 0) == (size == 0):
        reader.wrong("boft_block_size", "0 where boft_block_num is not, and else not 0", size)
        blocks, size = 0, 1
    return Boft(blocks, size, reader.count("boft_n_butterfly_factor", 1, most=32))


_ANY = 1 << 62  # what divides a module's inputs is bounded by them
_SERVED = Treatment.SERVED

BOFT = WeightKind(
    "BOFT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        Option("boft_block_size", _SERVED, "inputs in a block"),
        Option("boft_block_num", _SERVED, "blocks of a module, where boft_block_size is 0"),
        Option("boft_n_butterfly_factor", _SERVED, "as many rotations as the file holds: these, or one"),
        BIAS,
        no_effect("fan_in_fan_out", "inputs are rotated on Conv1D alike"),
        *training_only("boft_dropout", "init_weights"),
    ),
    parse=_parse,
    endings=("boft_R", "boft_s"),
    form="s ⊙ W Rᵀ - W, R a product of block rotations",
    rank="none: ΔW as it is",
    cost="that of the whole weight",
    strings_ignore_layers=True,
)
