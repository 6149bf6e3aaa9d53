"""FourierFT: the change of W is given by some of its Fourier coefficients (https://arxiv.org/abs/2405.03003).

It is s times the real part of the inverse transform. Each frequency is a cosine times a cosine minus a sine
times a sine, so n of them have a rank of at most 2 n, and of at most twice the rows or columns they lie in.
"""

from __future__ import annotations

import math
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
from manylora.adapters.format.kinds.updates import Dense, Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class FourierFt:
    """What a config of FourierFT says."""

    counts: PerModule[int]
    scaling: float
    seed: int

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        counts = self.counts.of(targets, faults)
        many = [m for m in targets if counts[m.name] > m.in_features * m.out_features]
        refuse("n_frequency is more than there are numbers in the weights of", many, faults)
        draw = cache(partial(positions, self.seed))
        return KindLayout({m.name: self._plan(m, counts[m.name], draw) for m in targets})

    def _plan(self, module: TargetModule, count: int, draw: Positions) -> ModulePlan:
        slots = {"values": slot(module, "fourierft_spectrum", count)}
        return ModulePlan(slots, partial(self._update, module, count, draw))

    def _update(
        self, module: TargetModule, count: int, draw: Positions, tensors: Mapping[str, torch.Tensor]
    ) -> WeightUpdate:
        rows, columns = draw((module.out_features, module.in_features), count)
        values = tensors["values"].float() * self.scaling
        rank = 2 * min(len(rows.unique()), len(columns.unique()))
        if rank < full_rank(module):
            return LowRank(rank, 0, partial(_factors, module, rows, columns, values))
        return Dense(module, partial(_change, module, rows, columns, values))


def _change(
    module: TargetModule, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    spectrum = torch.zeros(module.out_features, module.in_features).index_put_((rows, columns), values)
    change: torch.Tensor = torch.fft.ifft2(spectrum).real
    return change


def _factors(
    module: TargetModule, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor
) -> Factors:
    rows, row = rows.unique(return_inverse=True)
    columns, column = columns.unique(return_inverse=True)
    values = values / (module.out_features * module.in_features)
    spectrum = torch.zeros(len(rows), len(columns)).index_put_((row, column), values)
    outputs, inputs = _waves(rows, module.out_features), _waves(columns, module.in_features)
    signed = torch.stack((spectrum, -spectrum))  # of the cosines, of the sines
    if len(rows) <= len(columns):
        return (signed @ inputs).flatten(0, 1), outputs.flatten(0, 1).T
    return inputs.flatten(0, 1), (signed.transpose(1, 2) @ outputs).flatten(0, 1).T


def _waves(frequencies: torch.Tensor, length: int) -> torch.Tensor:
    """Cosines and sines [2, n, length] float32 of the frequencies, with angles exact up to whole turns."""
    turns = (frequencies[:, None] * torch.arange(length)) % length
    angles = turns.double() * (2 * math.pi / length)
    return torch.stack((angles.cos(), angles.sin())).float()


def read_counts(reader: ConfigReader, default: int) -> PerModule[int]:
    """``n_frequency`` and ``n_frequency_pattern``."""
    most = 1 << 48  # compared with each weight
    one = partial(reader.count_of, most=most)
    return PerModule(
        "n_frequency_pattern",
        reader.count("n_frequency", default, most=most),
        reader.pattern("n_frequency_pattern", one),
    )


def _parse(reader: ConfigReader) -> FourierFt:
    return FourierFt(
        read_counts(reader, 1000), reader.number("scaling", 150.0), reader.random_seed("random_loc_seed", 777)
    )


_SERVED = Treatment.SERVED
N_FREQUENCY = Option("n_frequency", _SERVED, "up to the number of entries of a weight")
N_FREQUENCY_PATTERN = Option("n_frequency_pattern", _SERVED, "per module, with PEFT's matching")
RANDOM_LOC_SEED = Option("random_loc_seed", _SERVED, "the seed of their places, which are drawn as PEFT does")
SCALING = Option("scaling", _SERVED, "any number")

FOURIERFT = WeightKind(
    "FOURIERFT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        N_FREQUENCY,
        N_FREQUENCY_PATTERN,
        RANDOM_LOC_SEED,
        SCALING,
        BIAS,
        no_effect("fan_in_fan_out", "the coefficients are those of W [out, in]"),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=("fourierft_spectrum",),
    form="s Re(the inverse Fourier transform of n_frequency numbers)",
    rank="2 n_frequency, or ΔW as it is where that takes less",
    cost="that of the whole weight, or less with few frequencies",
)
