"""Several processes, each of which has a part of a decoder's weights and runs its part of every step."""

from __future__ import annotations

from typing import Protocol

import torch


class Ranks(Protocol):
    """The processes as one of them sees them. All of them call :meth:`sum` and :meth:`join` in one order."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def vocab_size(self) -> int:
        """Tokens that the parts of the head have together."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of what every rank gives, in the memory of ``x``, which is contiguous."""

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [R, V] of all tokens, of those of each rank's part of the head [R, v]."""
