"""What a job measures as a run of its own does: over its steps since the last line, and on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Window:
    """Sums since the last line of metrics.jsonl; tokens since the beginning."""

    losses: float = 0.0  # of steps
    steps: int = 0
    right: int = 0  # learned tokens that were the likeliest
    learned: int = 0
    tokens: int = 0

    def count(self, right: int, learned: int, tokens: int) -> None:
        """Add a batch: learned tokens that were the likeliest, learned tokens, all tokens."""
        self.right += right
        self.learned += learned
        self.tokens += tokens

    def add_step(self, loss: float) -> None:
        """Add the loss of one optimizer step."""
        self.losses += loss
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The measures of the steps since the last call."""
        values = {
            "loss": self.losses / max(1, self.steps),
            "token_accuracy": self.right / max(1, self.learned),
            "tokens": self.tokens,
        }
        self.losses, self.steps, self.right, self.learned = 0.0, 0, 0, 0
        return values


@dataclass
class Best:
    """The matrices of the step with the lowest held-out loss."""

    step: int | None = None
    loss: float = float("inf")
    matrices: list[Tensor] = field(default_factory=list)

    def offer(self, step: int, loss: float, matrices: Sequence[Tensor]) -> None:
        """Remember a copy of ``matrices`` if ``loss`` is lower than any before."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            self.matrices = [matrix.detach().clone() for matrix in matrices]

    @torch.no_grad()
    def restore(self, matrices: Sequence[Tensor]) -> None:
        """Set ``matrices`` to those of the best step, if there is one."""
        for matrix, kept in zip(matrices, self.matrices, strict=False):
            matrix.copy_(kept)
