"""WaveFT: the change of W is given by some of its wavelet coefficients (https://arxiv.org/abs/2505.12532)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.draws import Positions, positions
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.ranks import PerModule
from manylora.adapters.format.kinds.rows import EVERY_KIND, no_effect, training_only
from manylora.adapters.format.kinds.sparse.entries import SparseChange
from manylora.adapters.format.kinds.spectral.fourierft import (
    N_FREQUENCY,
    N_FREQUENCY_PATTERN,
    RANDOM_LOC_SEED,
    SCALING,
    read_counts,
)
from manylora.adapters.format.kinds.spectral.wavelets import families, high_pass, low_pass
from manylora.adapters.format.kinds.updates import Dense, Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class WaveFt:
    """What a config of WaveFT says."""

    counts: PerModule[int]
    proportional: bool  # whether modules get as much of all coefficients as they have of all entries
    scaling: float
    seed: int
    family: str | None  # None: the coefficients are entries of the change itself

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        counts = self._shares(targets) if self.proportional else self.counts.of(targets, faults)
        many = [m for m in targets if counts[m.name] > m.in_features * m.out_features]
        refuse("n_frequency is more than there are numbers in the weights of", many, faults)
        draw = cache(partial(positions, self.seed))
        return KindLayout({m.name: self._plan(m, counts[m.name], draw) for m in targets})

    def _shares(self, targets: Sequence[TargetModule]) -> dict[str, int]:
        sizes = {module.name: module.in_features * module.out_features for module in targets}
        total, budget = sum(sizes.values()), self.counts.default * len(sizes)
        return {name: max(1, round(size / total * budget)) for name, size in sizes.items()}

    def _plan(self, module: TargetModule, count: int, draw: Positions) -> ModulePlan:
        slots = {"values": slot(module, "waveft_spectrum", count)}
        return ModulePlan(slots, partial(self._update, module, count, draw))

    def _update(
        self, module: TargetModule, count: int, draw: Positions, tensors: Mapping[str, torch.Tensor]
    ) -> WeightUpdate:
        shape = (module.out_features, module.in_features)
        rows, columns = draw(shape, count)
        values = tensors["values"].float() * self.scaling
        if self.family is None:
            return SparseChange(rows, columns, values, shape)
        low = low_pass(self.family)
        rows, columns = _waves_of(rows, columns, shape, len(low))
        make = partial(_factors, rows, columns, values, shape, low)
        rank = min(len(rows.unique()), len(columns.unique()))
        if rank < full_rank(module):
            return LowRank(rank, 0, make)
        return Dense(module, lambda: _product(make()))


def _product(factors: Factors) -> torch.Tensor:
    a, b = factors
    return b @ a


def _factors(
    rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int], low: torch.Tensor
) -> Factors:
    rows, row = rows.unique(return_inverse=True)
    columns, column = columns.unique(return_inverse=True)
    change = torch.zeros(len(rows), len(columns)).index_put_((row, column), values)
    outputs, inputs = _waves(low, shape[0])[rows], _waves(low, shape[1])[columns]
    if len(rows) <= len(columns):
        return change @ inputs, outputs.T
    return inputs, outputs.T @ change


def _waves_of(
    rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int], taps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which waves of the outputs and of the inputs the coefficients at (rows, columns) belong to.

    PEFT gives the upper right quarter to high waves of the outputs and low ones of the inputs, and the
    lower left one the other way round: against their places, so both are exchanged here.
    """
    height, width = (_padded(length, taps) for length in shape)
    row, column = rows + (height - shape[0]) // 2, columns + (width - shape[1]) // 2
    high_row, high_column = column >= width // 2, row >= height // 2
    return (
        row % (height // 2) + high_row * (height // 2),
        column % (width // 2) + high_column * (width // 2),
    )


def _padded(length: int, taps: int) -> int:
    """Coefficients of one side: those that the filter loses at the ends are added, to an even number."""
    padded = length + taps - 2
    return padded + padded % 2


def _waves(low: torch.Tensor, length: int) -> torch.Tensor:
    """What each coefficient adds to one side, [coefficients, length] float32: first low ones, then high."""
    taps, count = len(low), _padded(length, len(low)) // 2
    waves = torch.zeros(2, count, 2 * count - 2 + taps, dtype=low.dtype)
    both = torch.stack((low, high_pass(low)))
    for index in range(count):
        waves[:, index, 2 * index : 2 * index + taps] = both
    return waves[:, :, taps - 2 : taps - 2 + length].flatten(0, 1).float()


def _parse(reader: ConfigReader) -> WaveFt:
    family: str | None = None
    if reader.flag("use_idwt", True):
        family = reader.choice("wavelet_family", families(), "db1")
    return WaveFt(
        read_counts(reader, 2592),
        reader.flag("proportional_parameters"),
        reader.number("scaling", 25.0),
        reader.random_seed("random_loc_seed", 777),
        family,
    )


_SERVED = Treatment.SERVED

WAVEFT = WeightKind(
    "WAVEFT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        N_FREQUENCY,
        N_FREQUENCY_PATTERN,
        Option("proportional_parameters", _SERVED, "n_frequency on average, more in larger modules"),
        RANDOM_LOC_SEED,
        SCALING,
        Option(
            "wavelet_family",
            _SERVED,
            "db1 to db10, sym2 to sym10, coif1 to coif4: PEFT has no right filter for the others",
        ),
        Option("use_idwt", _SERVED, "without it the numbers are entries of the change itself"),
        BIAS,
        no_effect("fan_in_fan_out", "the coefficients are those of W [out, in]"),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=("waveft_spectrum",),
    form="s (the inverse wavelet transform of n_frequency numbers)",
    rank="n_frequency, or ΔW as it is where that takes less",
    cost="that of the whole weight, or less with few frequencies",
)
