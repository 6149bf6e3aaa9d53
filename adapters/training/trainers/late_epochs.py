"""The last epochs of a run, at whose ends it is looked at more closely."""

from __future__ import annotations

from typing import Any, Final

LATE_EPOCHS: Final = 3
_ROUNDING: Final = 1e-6  # of a count of epochs


def ends_late_epoch(state: Any, *, stops_early: bool) -> bool:
    """Whether a trainer that is at the end of an epoch has just done one of the last, and all of it.

    With ``stops_early`` any may be among the last.
    """
    whole = round(state.epoch)
    is_whole = abs(state.epoch - whole) < _ROUNDING  # it was not stopped within
    return is_whole and (stops_early or whole > state.num_train_epochs - LATE_EPOCHS)
