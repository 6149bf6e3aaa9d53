"""Which bases fit which cards, and with how much room for contexts and adapters."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.server.errors import ConfigError
from manylora.server.sizing.division import Demand, Division, divide
from manylora.server.sizing.shape import BaseShape, item_bytes
from manylora.server.sizing.step import StepSize, probe_bytes, reserved_bytes

DRIVER_BYTES = 600 << 20  # of a card that no program gets: the driver's, and the context of a process
_STEP = 256 << 20  # in which the smallest card is looked for
_LARGEST = 1 << 42


@dataclass(frozen=True)
class Serving:
    """What is to be served, and how."""

    shape: BaseShape
    form: str  # one of manylora.server.sizing.shape.FORMATS
    size: StepSize
    rank: int  # of the adapters, which change all linear layers

    @property
    def weights(self) -> int:
        """Bytes of the base."""
        return self.shape.weight_bytes(self.form)

    @property
    def adapter(self) -> int:
        """Bytes of an adapter."""
        return self.shape.adapter_bytes(self.rank, self.form)

    def on(self, card: int) -> Division | None:
        """How a card of so many bytes is divided; None if not even one full context fits."""
        demand = Demand(
            step=max(reserved_bytes(self.shape, item_bytes(self.form), self.size), probe_bytes(self.shape)),
            block=self.shape.block_bytes(self.form),
            context=self.size.context,
            sequences=self.size.sequences,
            merged_copy=self.shape.copy_bytes(self.form),
        )
        try:
            division = divide(card - DRIVER_BYTES - self.weights, demand)
        except ConfigError:
            return None
        return division if division.tokens >= self.size.context else None

    def smallest(self) -> int:
        """Bytes of the smallest card that it fits, to a quarter of a GiB."""
        low, high = 0, _LARGEST // _STEP
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.on(middle * _STEP) is not None else (middle, high)
        return high * _STEP
