"""How much memory a job would need, from the shape of its base and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manylora.adapters.training.config import TrainConfig

if TYPE_CHECKING:
    from manylora.adapters.training.estimate.memory import Memory

_TARGETS = ("all-linear", "attention", "mlp")  # whose sizes are known without the names of layers


def memory_of(config: TrainConfig, length: int) -> Memory:
    """The memory that a run needs where the rows of a batch have ``length`` tokens each."""
    from manylora.adapters.training.estimate.memory import Plan, estimate  # noqa: PLC0415  (slow)
    from manylora.adapters.training.model.base import find_shape, pick_device, pick_dtype  # noqa: PLC0415

    dtype = pick_dtype(config.dtype, pick_device(config.device), needs_fp32=config.converted)
    method: Any = {"none": "lora", "int8": "lora-8bit", "nf4": "qlora"}[config.quantization]
    target = config.target_modules[0] if len(config.target_modules) == 1 else _TARGETS[0]
    target = target if target in _TARGETS else _TARGETS[0]
    pairs = 2 if config.task == "dpo" else 1
    plan = Plan(config.lora_r, target, length, config.batch_size * pairs, dtype)
    return estimate(find_shape(config.base_model), plan, [method])[0]
