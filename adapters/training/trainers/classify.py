"""Sequence classification: transformers' own trainer; the new head is trained in full and saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import EncodedText
from manylora.adapters.training.trainers.quiet_trainer import RowMeanTrainer


class ClassificationTrainer(RowMeanTrainer, Trainer):  # type: ignore[misc]
    """Cross-entropy on the class of each text."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = False  # what the model would divide by is learned tokens, not rows

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = self.share_of_step(inputs)
        return (result[0] * share, result[1]) if return_outputs else result * share


def classification_dataset(items: Sequence[Item]) -> Dataset:
    """Ids and the index of the class."""
    return Dataset.from_list(
        [{"input_ids": i.input_ids, "labels": i.label} for i in items if isinstance(i, EncodedText)]
    )


class PaddedTexts:
    """Collates rows to tensors, padded on the right; the head reads the last token that is no padding."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids and attention_mask int64 [rows, longest]; labels int64 [rows]."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self._pad_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[index, :length] = torch.tensor(row["input_ids"])
            mask[index, :length] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
