"""The trained tensors of a LoRA, module by module, as they are on a PEFT model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """The trained matrices of one adapter for one module, and DoRA's magnitudes."""

    a: Tensor  # [r, in] float32
    b: Tensor  # [out, r] float32
    scaling: float
    magnitude: Tensor | None = None  # [out] float32, of DoRA

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained: A, B, and the magnitudes where there are any."""
        return [self.a, self.b] if self.magnitude is None else [self.a, self.b, self.magnitude]


def lora_pairs(model: Any) -> Iterator[tuple[str, Pair]]:
    """Module of the base and trained tensors of every LoRA linear layer of a PEFT model."""
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            dora = module.lora_magnitude_vector
            magnitude = dora["default"].weight if "default" in dora else None
            yield name, Pair(a, b, float(module.scaling["default"]), magnitude)
