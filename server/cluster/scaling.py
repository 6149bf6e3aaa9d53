"""How many replicas there should be: by what they have to do, and by adapters that find no room."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

FULL = 0.7  # of the sequences that a replica computes together: so many are its fair share
_CROWDED = 1.0  # requests a replica, on average, that wait for room among its adapters


@dataclass(frozen=True, slots=True)
class Load:
    """What one replica has to do."""

    ongoing: float  # sequences that run and wait
    capacity: float  # sequences that it computes together
    adapters_waiting: float  # requests whose adapters find no room on the device


def replicas_wanted(loads: Collection[Load], least: int, most: int) -> int:
    """How many replicas do what these have to do.

    Where requests wait for room among adapters there is one more, whatever there is to compute; and none goes
    while that is so: the others would have to hold its adapters as well.
    """
    if not loads:
        return least
    capacity = sum(load.capacity for load in loads) / len(loads)
    wanted = math.ceil(sum(load.ongoing for load in loads) / max(1.0, FULL * capacity))
    waiting = sum(load.adapters_waiting for load in loads)
    if waiting > _CROWDED * len(loads):
        wanted = max(wanted, len(loads) + 1)
    elif waiting > 0:
        wanted = max(wanted, len(loads))
    return max(least, min(most, wanted))
