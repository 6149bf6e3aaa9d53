"""Supervised fine-tuning: TRL's trainer on rows that were tokenized and labelled before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor
from torch.nn import functional
from trl import SFTTrainer
from trl.data_utils import pack_dataset

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import IGNORED, Encoded


class QuietTrainer:
    """What this project does differently in every trainer: nothing is sent anywhere, LoRA+ if asked for."""

    loraplus_ratio: float | None = None

    def _send_telemetry(self) -> None:
        """Nothing about a run leaves the machine."""

    def create_model_card(self, *_args: Any, **_options: Any) -> None:
        """Checkpoints need no card; the finished adapter has its own."""

    def create_optimizer(self, model: Any = None) -> Any:
        trainer: Any = self
        if self.loraplus_ratio is None or trainer.optimizer is not None:
            return super().create_optimizer(model)  # type: ignore[misc]
        kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
        trainer.optimizer = create_loraplus_optimizer(
            trainer.accelerator.unwrap_model(trainer.model),
            kind,
            loraplus_lr_ratio=self.loraplus_ratio,
            loraplus_weight_decay=trainer.args.weight_decay,
            **options,
        )
        return trainer.optimizer


class SupervisedTrainer(QuietTrainer, SFTTrainer):  # type: ignore[misc]
    """Computes logits only at positions where some row is learned.

    TRL's fused head does the same on a GPU; on a CPU it computes them for every position, which for a small
    model is a fifth of the step.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self.args.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        fields = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**fields, use_cache=False, logits_to_keep=columns).logits.float()
        chosen = labels[:, columns]
        total = functional.cross_entropy(
            logits.flatten(0, 1), chosen.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        self._count(inputs, logits, chosen)
        count = (chosen != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # what DDP averages, as in TRL
        return loss

    @torch.no_grad()
    def _count(self, inputs: dict[str, Any], logits: Tensor, labels: Tensor) -> None:
        """The metrics that TRL logs, without entropy."""
        mode = "train" if self.model.training else "eval"
        learned = labels != IGNORED
        right = ((logits.argmax(-1) == labels) & learned).sum()
        seen = (
            inputs["attention_mask"].sum() if "attention_mask" in inputs else torch.tensor(labels.numel() + 1)
        )
        counts = torch.stack([right, learned.sum(), seen])
        right, total, seen = self.accelerator.gather_for_metrics(counts[None]).sum(0).tolist()
        self._metrics[mode]["mean_token_accuracy"].append(right / max(1, total))
        if mode == "train":
            self._total_train_tokens += seen
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def sft_dataset(items: Sequence[Item], max_length: int | None) -> Dataset:
    """Ids and labels; packed into sequences of ``max_length`` if one is given."""
    rows = [{"input_ids": i.input_ids, "labels": i.labels} for i in items if isinstance(i, Encoded)]
    dataset = Dataset.from_list(rows)
    return dataset if max_length is None else pack_dataset(dataset, max_length, "bfd", {})
