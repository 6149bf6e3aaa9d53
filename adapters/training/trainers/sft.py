"""Supervised fine-tuning: TRL's trainer on rows that were tokenized and labelled before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import functional
from trl import SFTTrainer
from trl.data_utils import pack_dataset

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import IGNORED, Encoded
from manylora.adapters.training.decoder.batch import (
    Learned,
    Packed,
    learned_of,
    lengths_of,
    per_row,
    without_padding,
)
from manylora.adapters.training.decoder.decoder import FusedDecoder
from manylora.adapters.training.decoder.head import TokenLosses
from manylora.adapters.training.model.virtual_tokens import virtual_tokens
from manylora.adapters.training.trainers.pooled import Pool
from manylora.adapters.training.trainers.quiet_trainer import QuietTrainer


class SupervisedTrainer(QuietTrainer, SFTTrainer):  # type: ignore[misc]
    """Computes logits only at positions where some row is learned, and logs means over all learned tokens.

    With ``decoder`` the batch goes through it, packed and without padding. Without, TRL's fused head
    leaves out other positions on a GPU; on a CPU it does not, which for a small model is a fifth of the step.
    """

    decoder: FusedDecoder | None = None
    # Instead of the decoder's own losses in training: those of a pass that takes other runs' batches along.
    joint: Callable[[Packed, Learned, Tensor], TokenLosses] | None = None

    def __init__(self, *args: Any, model: Any, **options: Any) -> None:
        is_head_adapted = isinstance(model.get_output_embeddings(), BaseTunerLayer)  # tied trained tokens
        has_prompt = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        self._is_own_loss = is_head_adapted or has_prompt  # on any device, since TRL's does not fit
        with _hidden_head(model) if is_head_adapted else nullcontext():
            super().__init__(*args, model=model, **options)
        self._pools = {"train": Pool(), "eval": Pool()}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self.decoder is not None and not return_outputs:
            return self._decoded_loss(self.decoder, inputs, num_items_in_batch)
        if not self._is_own_loss and (self.args.device.type != "cpu" or return_outputs):
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self._pool_fused(inputs, result[0] if return_outputs else result)
            return result
        labels = inputs["labels"][:, 1:]
        columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        fields = {name: value for name, value in inputs.items() if name != "labels"}
        kept = columns + virtual_tokens(self.accelerator.unwrap_model(model))
        logits = model(**fields, use_cache=False, logits_to_keep=kept).logits.float()
        chosen = labels[:, columns]
        losses = functional.cross_entropy(
            logits.flatten(0, 1), chosen.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(chosen.shape)
        learned = chosen != IGNORED
        right = (logits.argmax(-1) == chosen) & learned
        self._count(right.sum(1), learned.sum(1), _seen_tokens(inputs), losses.detach().sum(1))
        count = (chosen != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / torch.as_tensor(count).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # what DDP averages, as in TRL
        return (loss, {}) if return_outputs else loss

    def _decoded_loss(
        self, decoder: FusedDecoder, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The loss of a batch by the fused decoder: the same sum over the same tokens."""
        lengths = lengths_of(inputs)
        ids, labels = (without_padding(inputs[name], inputs) for name in ("input_ids", "labels"))
        learned = learned_of(labels, lengths)
        count = len(learned.rows) if num_items_in_batch is None else num_items_in_batch
        shares = torch.ones(len(learned.rows), device=ids.device) / torch.as_tensor(count).clamp(min=1)
        batch = Packed(ids, lengths, (slice(0, len(ids)),))
        if self.joint is not None and self.model.training:
            losses = self.joint(batch, learned, shares)
        else:
            losses = decoder.losses(batch, learned, shares, drops=self.model.training)
        self._count(*per_row(losses.each, losses.right, learned, lengths, len(inputs["input_ids"])))
        return losses.total

    @torch.no_grad()
    def _count(self, right: Tensor, learned: Tensor, seen: Tensor, losses: Tensor) -> None:
        """Add a batch to the metrics that TRL logs (without entropy); the held-out loss is one of them.

        By row of the batch: right ones of the learned tokens, learned tokens, all tokens, sum of losses.
        """
        rows = torch.stack([right, learned, seen, losses], dim=1).double()
        if self.model.training:
            sums = self.accelerator.gather(rows.sum(0, keepdim=True))
        else:  # by row, for only so the rows that fill the last batch up can be left out
            sums = self.accelerator.gather_for_metrics(rows)
        correct, total, tokens, loss = sums.sum(0).tolist()
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        metrics["mean_token_accuracy"].append(correct / max(1.0, total))
        if mode == "train":
            self._total_train_tokens += int(tokens)
        else:
            metrics["loss"].append(loss / max(1.0, total))
        metrics["num_tokens"] = [self._total_train_tokens]
        self._pools[mode].fold(metrics, lambda _: total)

    @torch.no_grad()
    def _pool_fused(self, inputs: dict[str, Any], loss: Tensor) -> None:
        """Pool what TRL has just added for a batch, and in an evaluation its loss."""
        mode = "train" if self.model.training else "eval"
        count = (inputs["labels"][:, 1:] != IGNORED).sum()
        sums = self.accelerator.gather(torch.stack([count.double(), loss.detach().double() * count])[None])
        total, weighted = sums.sum(0).tolist()
        if mode == "eval":
            self._metrics[mode]["loss"].append(weighted / max(1.0, total))
        self._pools[mode].fold(self._metrics[mode], lambda _: total)


@contextmanager
def _hidden_head(model: Any) -> Iterator[None]:
    """Within the block ``model`` hides its head: TRL, which reads its weight itself, would refuse."""
    model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_output_embeddings


def _seen_tokens(inputs: dict[str, Any]) -> Tensor:
    """Tokens of each row that are no padding; packed rows have none."""
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    return torch.ones_like(ids).sum(1) if mask is None else mask.sum(1)


def sft_dataset(items: Sequence[Item], max_length: int | None) -> Dataset:
    """Ids and labels; packed into sequences of ``max_length`` if one is given."""
    rows = [{"input_ids": i.input_ids, "labels": i.labels} for i in items if isinstance(i, Encoded)]
    dataset = Dataset.from_list(rows)
    return dataset if max_length is None else pack_dataset(dataset, max_length, "bfd", {})
