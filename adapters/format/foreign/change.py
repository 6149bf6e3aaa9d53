"""An adapter on its way from one form to another: what it does to each module, and its number beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from manylora.adapters.format.foreign.names import Rule


@dataclass(frozen=True, slots=True)
class LowRank:
    """What LoRA, or DoRA, does to one linear layer: ``scaling · B A``."""

    a: torch.Tensor  # [r, in]
    b: torch.Tensor  # [out, r]
    scaling: float
    magnitude: torch.Tensor | None = None  # [out], DoRA's
    b_bias: torch.Tensor | None = None  # [out], lora_bias

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def rows(self, chosen: torch.Tensor) -> LowRank:
        """The same on some of the outputs only."""
        parts = {name: None if t is None else t[chosen] for name, t in self.by_row().items()}
        return LowRank(self.a, self.b[chosen], self.scaling, **parts)

    def by_row(self) -> dict[str, torch.Tensor | None]:
        """The parts with a number for each output, beside B."""
        return {"magnitude": self.magnitude, "b_bias": self.b_bias}


@dataclass(frozen=True)
class Change:
    """A whole adapter, by the modules of the base."""

    modules: Mapping[str, LowRank]
    tables: Mapping[str, LowRank] = field(default_factory=dict)  # embeddings (A [r, V], B [width, r]), head
    options: Mapping[str, Any] = field(default_factory=dict)  # of its adapter_config.json
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)  # tensors under PEFT's names


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted, as it is shown."""

    format: str  # "PEFT", "MLX", "GGUF", ...: who writes such files
    file: str  # the name of the file with the weights
    rules: frozenset[Rule]

    def details(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"format": self.format, "file": self.file, "rules": sorted(map(str, self.rules))}
