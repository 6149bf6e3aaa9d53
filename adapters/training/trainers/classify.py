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
from manylora.adapters.training.trainers.pooled import Accuracy
from manylora.adapters.training.trainers.quiet_trainer import RowMeanTrainer


class ClassificationTrainer(RowMeanTrainer, Trainer):  # type: ignore[misc]
    """Cross-entropy on the class of each text."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = False  # what the model would divide by is learned tokens, not rows
        self._accuracy = Accuracy(self)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._accuracy.add(outputs.logits.detach().argmax(-1) == inputs["labels"])
        loss = loss * self.share_of_step(inputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Add how often the likeliest class was the right one since the last log of the kind."""
        super().log({**logs, **self._accuracy.take()}, *args, **options)


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
