"""Preferences: TRL's DPO trainer on pairs that were tokenized before; the base is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import DPOTrainer

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import EncodedPair
from manylora.adapters.training.trainers.sft import QuietTrainer


class PreferenceTrainer(QuietTrainer, DPOTrainer):  # type: ignore[misc]
    """Takes rows of ids rather than text, so that no other template comes in."""

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_options: Any) -> Any:
        """Leave the data set as it is: its rows are token ids already."""
        return dataset


def dpo_dataset(items: Sequence[Item]) -> Dataset:
    """The three id lists that TRL's collator takes."""
    return Dataset.from_list(
        [
            {"prompt_ids": i.prompt_ids, "chosen_ids": i.chosen_ids, "rejected_ids": i.rejected_ids}
            for i in items
            if isinstance(i, EncodedPair)
        ]
    )
