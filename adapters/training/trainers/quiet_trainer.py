"""What this project does differently in every trainer of TRL and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer


class QuietTrainer:
    """What this project does differently in every trainer: nothing is sent anywhere, LoRA+ if asked for."""

    loraplus_ratio: float | None = None

    def _send_telemetry(self) -> None:
        """Nothing about a run leaves the machine."""

    def create_model_card(self, *_args: Any, **_options: Any) -> None:
        """Checkpoints need no card; the finished adapter has its own."""

    def training_step(self, *args: Any, **options: Any) -> Any:
        """One batch; the count of tokens goes on where a checkpoint stopped, which TRL does not keep."""
        trainer: Any = self
        state, is_counted = trainer.state, hasattr(self, "_total_train_tokens")
        if is_counted:
            self._total_train_tokens: int = max(self._total_train_tokens, state.num_input_tokens_seen)
        loss = super().training_step(*args, **options)  # type: ignore[misc]
        if is_counted:
            state.num_input_tokens_seen = self._total_train_tokens
        return loss

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


class RowMeanTrainer(QuietTrainer):
    """A trainer whose loss is a mean over rows: over all rows of an optimizer step, however it is cut.

    transformers takes the plain mean of its batches, of which the last of an epoch may have fewer rows.
    """

    _rows_of_step = 0  # over all batches and processes
    _batches_of_step = 0

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        trainer: Any = self
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        rows = torch.tensor([sum(self.rows_of(batch) for batch in samples)], device=device)
        self._rows_of_step = int(trainer.accelerator.gather(rows).sum())
        self._batches_of_step = len(samples)
        return samples, items

    def rows_of(self, batch: dict[str, Any]) -> int:
        """How many rows the loss of ``batch`` is the mean of."""
        return len(batch["input_ids"])

    def share_of_step(self, inputs: dict[str, Any]) -> float:
        """What the mean over ``inputs`` is multiplied by so that the mean of all batches is that of rows."""
        trainer: Any = self
        if not trainer.model.training or not self._rows_of_step:
            return 1.0
        batches = self._batches_of_step * trainer.accelerator.num_processes
        return float(self.rows_of(inputs) * batches / self._rows_of_step)
