"""VB-LoRA: A and B are put together from the vectors of one bank (https://arxiv.org/abs/2405.15179).

Every stretch of a row of A, and of a column of B, is a weighted sum of the k vectors with the largest logits;
the weights are the softmax of those. ``save_only_topk_weights`` saves the chosen vectors' numbers and all of
their weights but the last.
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
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, SAME_ON_CONV1D, training_only
from manylora.adapters.format.kinds.updates import Factors, LowRank
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

MAX_VECTORS = 1 << 31


@dataclass(frozen=True, slots=True)
class VbLora:
    """What a config of VB-LoRA says."""

    rank: int
    vectors: int
    length: int  # of a vector
    chosen: int  # vectors that are added up: k
    only_chosen: bool  # whether the file holds only what was chosen

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        if self.chosen > self.vectors:
            faults.add(f"topk={self.chosen} is more than num_vectors={self.vectors}")
        odd = [m for m in targets if m.in_features % self.length or m.out_features % self.length]
        if odd:
            faults.add(
                f"vector_length={self.length} does not divide the sizes of {shown(odd[0].name)}: "
                f"{odd[0].in_features} inputs and {odd[0].out_features} outputs"
            )
        bank = Slot("base_model.vblora_vector_bank", (self.vectors, self.length))
        return KindLayout({m.name: self._plan(m) for m in targets}, {"bank": bank})

    def _plan(self, module: TargetModule) -> ModulePlan:
        tiles_in, tiles_out = module.in_features // self.length, module.out_features // self.length
        slots = {
            **self._slots(module, "A", (self.rank, tiles_in)),
            **self._slots(module, "B", (tiles_out, self.rank)),
        }
        return ModulePlan(slots, self._update, self.rank)

    def _slots(self, module: TargetModule, part: str, tiles: tuple[int, int]) -> dict[str, Slot]:
        name = f"{PREFIX}{module.name}.vblora_logits_{part}"
        if not self.only_chosen:
            return {part: Slot(name, (*tiles, self.vectors))}
        return {
            f"{part}_indices": Slot(f"{name}_topk_indices", (*tiles, self.chosen), integers=True),
            f"{part}_weights": Slot(f"{name}_topk_weights", (*tiles, self.chosen - 1)),
        }

    def _update(self, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        return LowRank(self.rank, self.rank, partial(self._factors, tensors))

    def _factors(self, tensors: Mapping[str, torch.Tensor]) -> Factors:
        a = self._tiles(tensors, "A").flatten(1)  # of [r, tiles of in, length]
        b = self._tiles(tensors, "B").transpose(1, 2).flatten(0, 1)  # of [tiles of out, r, length]
        return a, b

    def _tiles(self, tensors: Mapping[str, torch.Tensor], part: str) -> torch.Tensor:
        """The weighted sums [.., .., length]."""
        bank = tensors["bank"].float()
        if self.only_chosen:
            indices, known = tensors[f"{part}_indices"].long(), tensors[f"{part}_weights"].float()
            if bool((indices < 0).any()) or bool((indices >= self.vectors).any()):
                raise NoUpdate("topk_indices name vectors that the bank does not have")
            weights = torch.cat([known, 1 - known.sum(-1, keepdim=True)], dim=-1)
        else:
            logits, indices = tensors[part].float().topk(self.chosen, dim=-1)
            weights = logits.softmax(dim=-1)
        total = torch.zeros(*indices.shape[:2], self.length)
        for k in range(self.chosen):  # all at once would take k times the memory
            total += weights[..., k, None] * bank[indices[..., k]]
        return total


def _parse(reader: ConfigReader) -> VbLora:
    return VbLora(
        rank=reader.rank("r", reader.value("r", 4)),
        vectors=reader.count("num_vectors", 256, most=MAX_VECTORS),
        length=reader.count("vector_length", 256, most=MAX_VECTORS),
        chosen=reader.count("topk", 2, most=MAX_VECTORS),
        only_chosen=reader.flag("save_only_topk_weights"),
    )


VBLORA = WeightKind(
    "VBLORA",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        Option("num_vectors", Treatment.SERVED, "vectors of the bank"),
        Option("vector_length", Treatment.SERVED, "it divides the sizes of every target module"),
        Option("topk", Treatment.SERVED, "vectors that are added up for each stretch"),
        Option("save_only_topk_weights", Treatment.SERVED, "both forms of file are read"),
        SAME_ON_CONV1D,
        *training_only("vblora_dropout", "init_vector_bank_bound", "init_logits_std"),
        BIAS,
    ),
    parse=_parse,
    strings_ignore_layers=True,
    endings=tuple(
        f"vblora_logits_{part}{end}" for part in "AB" for end in ("", "_topk_indices", "_topk_weights")
    ),
    form="B A, put together from a bank of vectors",
    rank="r",
    cost="as LoRA of its rank",
    shared=("base_model.vblora_vector_bank",),
)
