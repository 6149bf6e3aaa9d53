"""EVA: A begins as the main directions of the activations that the data causes (arXiv 2410.07170)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import Tensor

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import IGNORED
from manylora.adapters.training.errors import TrainingError
from manylora.adapters.training.model.forward import learned_ids, pad_right
from manylora.adapters.training.model.lora import EVA_REDISTRIBUTION, trainable_in_fp32

MAX_BATCHES = 32
ROWS_A_COMPONENT = 2  # learned tokens a batch has for every direction that is looked for


def initialize_eva(model: Any, items: Sequence[Item], config: TrainConfig, pad_id: int) -> None:
    """Set every A from the data and move ranks to the layers whose activations need them.

    Raises:
        TrainingError: the data has too few learned tokens for so many directions.
    """
    rank = max(config.lora_r, *config.rank_pattern.values(), 1)
    needed = ROWS_A_COMPONENT * int(EVA_REDISTRIBUTION) * rank
    batches = _batches([learned_ids(item) for item in items], needed, pad_id)
    if not batches:
        raise TrainingError(
            f"init eva: rank {rank} needs {needed} learned tokens, which the data does not have: lower lora_r"
        )
    device = next(model.parameters()).device
    moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    initialize_lora_eva_weights(model, moved, show_progress_bar=False)
    trainable_in_fp32(model)


def _batches(
    rows: Sequence[tuple[list[int], list[int]]], needed: int, pad_id: int
) -> list[dict[str, Tensor]]:
    """Rows together until they have ``needed`` learned tokens; PEFT never ends on smaller batches alone."""
    batches: list[dict[str, Tensor]] = []
    group: list[tuple[list[int], list[int]]] = []
    count = 0
    for ids, labels in rows:
        group.append((ids, labels))
        count += sum(label != IGNORED for label in labels)
        if count >= needed:
            padded, mask = pad_right([ids for ids, _ in group], pad_id)
            targets, _ = pad_right([labels for _, labels in group], IGNORED)
            batches.append({"input_ids": padded, "attention_mask": mask, "labels": targets})
            group, count = [], 0
        if len(batches) == MAX_BATCHES:
            break
    return batches
