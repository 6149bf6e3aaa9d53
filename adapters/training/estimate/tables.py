"""The estimate as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from manylora.adapters.training.estimate.memory import Method, Plan, estimate, target_table

_TITLES: dict[Method, str] = {
    "full": "full, fp32",
    "lora": "LoRA, 16-bit base",
    "lora-8bit": "LoRA, 8-bit base",
    "qlora": "QLoRA, 4-bit base",
}


def estimate_tables(config: Any, plan: Plan, methods: Sequence[Method]) -> RenderableType:
    """Memory of each method side by side, and the adapter's size for each choice of target modules."""
    rows = estimate(config, plan, methods)
    memory = Table("", *(_TITLES[row.method] for row in rows), title="Memory to train", title_justify="left")
    for name, values in (
        ("weights", [row.weights for row in rows]),
        ("gradients", [row.gradients for row in rows]),
        ("optimizer (AdamW, fp32)", [row.optimizer for row in rows]),
        ("activations", [row.activations for row in rows]),
        ("peak", [row.peak for row in rows]),
    ):
        memory.add_row(name, *(size(value) for value in values), style="bold" if name == "peak" else "")
    adapters = Table("target modules", "trained parameters", "of all", "adapter file", title_justify="left")
    adapters.title = f"Adapter of rank {plan.r}"
    for target in target_table(config, plan.r):
        share = f"{target.share:.2%}"
        adapters.add_row(target.target, f"{target.trainable:,}", share, size(target.file_bytes))
    note = (
        "Activations are freed while gradients come to be, so the peak is less than the sum. Libraries, the\n"
        "allocator's slack and, on a GPU, the CUDA context come on top."
    )
    return Group(memory, adapters, note)


def size(value: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit == "B" or value < 100 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
