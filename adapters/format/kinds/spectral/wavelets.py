"""The low-pass filters of the wavelets that WaveFT may be trained with.

Those of Daubechies and the symlets follow from the roots of one polynomial (I. Daubechies, Ten Lectures on
Wavelets, 1992, chapters 6 and 8.1). Coiflets have no such form: theirs are the numbers that her tables give
and the PyWavelets library rounds to a double.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

MOMENTS = {"db": 10, "sym": 10, "coif": 4}  # the highest number of each family; PEFT can't compute with coif5
# Which groups of roots, in the order of :func:`_groups`, a symlet takes from outside of the unit circle.
_OUTSIDE = {2: 0, 3: 0, 4: 2, 5: 1, 6: 5, 7: 1, 8: 10, 9: 6, 10: 21}

_COIFLETS: Mapping[int, tuple[float, ...]] = {
    1: (
        -0.05142972847076845,
        0.23892972847076846,
        0.6028594569415369,
        0.2721405430584631,
        -0.05142972847076845,
        -0.011070271529231544,
    ),
    2: (
        0.011587596738716868,
        -0.029320137983468563,
        -0.04763959031100813,
        0.2730210465347666,
        0.5746823938568638,
        0.2948671936956192,
        -0.05408560709171143,
        -0.042026480460771606,
        0.016744410163279506,
        0.003967883612962012,
        -0.0012892033561406595,
        -0.0005095053991076441,
    ),
    3: (
        -0.0026824186709220686,
        0.005503126707831385,
        0.016583560479170346,
        -0.046507764478726975,
        -0.043220763560211914,
        0.28650333527364746,
        0.56128525687033,
        0.30298357177282415,
        -0.050770140754888865,
        -0.05819625076158553,
        0.024434094321166958,
        0.011229240962037866,
        -0.006369601011048823,
        -0.0018204589155662422,
        0.0007902051009575939,
        0.000329665173793183,
        -5.019277455327665e-05,
        -2.4465734255308132e-05,
    ),
    4: (
        0.0006309612114309468,
        -0.0011522251437699736,
        -0.005194525163470323,
        0.01136093089978195,
        0.01894506104561664,
        -0.05171984370581528,
        -0.03448614047094481,
        0.30227251053656845,
        0.5545479062408811,
        0.30791766802517506,
        -0.0435250092812657,
        -0.064887950971431,
        0.01988077364815952,
        0.017638947871261697,
        -0.007366054847173364,
        -0.002312432307658842,
        0.0014260063442333715,
        0.00046669846355373536,
        -0.0001270007842387334,
        -0.0001130536369789105,
        3.048364879677801e-05,
        1.2667448089330081e-05,
        -1.5849265807568937e-06,
        -1.1239480882815428e-06,
    ),
}  # fmt: skip  # times √2


def families() -> tuple[str, ...]:
    """The names of all wavelets that have a filter here: db1 to db10, sym2 to sym10, coif1 to coif4."""
    return tuple(f"{name}{n}" for name, last in MOMENTS.items() for n in range(1 + (name == "sym"), last + 1))


def low_pass(family: str) -> torch.Tensor:
    """The reconstruction filter [length] float64 of one of :func:`families`."""
    name, number = family.rstrip("0123456789"), int(family.lstrip("abcdefghijklmnopqrstuvwxyz"))
    if name == "coif":
        return torch.tensor(_COIFLETS[number], dtype=torch.float64) * math.sqrt(2)
    roots = [-1.0 + 0j] * number
    outside = _OUTSIDE[number] if name == "sym" else 0
    for index, group in enumerate(_groups(number)):
        roots += [1 / root for root in group] if outside >> index & 1 else group
    taps = np.poly(np.array(roots)).real
    return torch.from_numpy(taps * (math.sqrt(2) / taps.sum()))


def high_pass(low: torch.Tensor) -> torch.Tensor:
    """The other reconstruction filter: the first one backwards, with every second sign changed."""
    return low.flip(0) * torch.tensor([1.0, -1.0], dtype=low.dtype).repeat(len(low) // 2)


def _groups(moments: int) -> list[list[complex]]:
    """The roots within the unit circle beside -1: real ones, and pairs, by number and magnitude."""
    polynomial = [math.comb(moments - 1 + k, k) for k in range(moments - 1, -1, -1)]
    groups: list[list[complex]] = []
    for root in np.roots(polynomial):
        if root.imag < -1e-12:
            continue
        both = np.roots([1.0, 4 * root - 2, 1.0])
        inner = complex(both[np.argmin(np.abs(both))])
        groups.append([inner] if abs(root.imag) <= 1e-12 else [inner, inner.conjugate()])
    return sorted(groups, key=lambda group: (len(group), abs(group[0])))
