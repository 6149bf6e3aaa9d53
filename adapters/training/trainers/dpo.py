"""Preferences: TRL's DPO trainer on pairs that were tokenized before; the base is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import EncodedPair
from manylora.adapters.training.trainers.pooled import Pool
from manylora.adapters.training.trainers.quiet_trainer import RowMeanTrainer


class PreferenceTrainer(RowMeanTrainer, DPOTrainer):  # type: ignore[misc]
    """Takes rows of ids rather than text, so that no other template comes in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pools = {"train": Pool(), "eval": Pool()}

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_options: Any) -> Any:
        """Leave the data set as it is: its rows are token ids already."""
        return dataset

    def rows_of(self, batch: dict[str, Any]) -> int:
        """Pairs: the better answers come first, then the others."""
        return len(batch["input_ids"]) // 2

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._pool(inputs)
        share = self.share_of_step(inputs)
        return (result[0] * share, result[1]) if return_outputs else result * share

    @torch.no_grad()
    def _pool(self, inputs: dict[str, Any]) -> None:
        """Pool what TRL has just added for a batch: each metric by the rows or tokens it is the mean of."""
        mode = "train" if self.model.training else "eval"
        chosen, rejected = (mask.sum() for mask in inputs["completion_mask"].chunk(2, dim=0))
        rows = torch.full_like(chosen, self.rows_of(inputs))
        sums = self.accelerator.gather(torch.stack([rows, chosen, rejected])[None]).sum(0).tolist()
        weights = {
            "logits/chosen": sums[1],
            "mean_token_accuracy": sums[1],
            "logits/rejected": sums[2],
            "entropy": sums[1] + sums[2],
        }
        self._pools[mode].fold(self._metrics[mode], lambda key: float(weights.get(key, sums[0])))


def dpo_dataset(items: Sequence[Item]) -> Dataset:
    """The three id lists that TRL's collator takes."""
    return Dataset.from_list(
        [
            {"prompt_ids": i.prompt_ids, "chosen_ids": i.chosen_ids, "rejected_ids": i.rejected_ids}
            for i in items
            if isinstance(i, EncodedPair)
        ]
    )
