"""Kinds whose files hold something else than A and B: two sets of adapters of them, as PEFT saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.adapter_set import LLAMA_TARGETS, TARGETS
from tests.support.adapters import write_adapter
from tests.support.further_kinds import write_further_kinds
from tests.support.matrix_kinds import write_matrix_kinds

Write = Callable[[Path, Path, str], dict[str, Path]]  # root, model, family -> adapters by name

WRITES: Mapping[str, Write] = {
    "low rank": write_further_kinds,  # products of a few factors
    "matrices": write_matrix_kinds,  # dense, sparse, orthogonal and block-wise changes
}


def write_beside_lora(kinds: str, root: Path, model: Path, family: str) -> dict[str, Path]:
    """An adapter of each case of a set, and a plain LoRA."""
    attention, _ = TARGETS.get(family, LLAMA_TARGETS)
    plain = write_adapter(root / "plain", model, targets=attention, seed=99)
    return {**WRITES[kinds](root, model, family), "plain": plain}
