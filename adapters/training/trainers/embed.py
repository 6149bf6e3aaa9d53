"""Embeddings: transformers' own trainer over PEFT's model for feature extraction, with a contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer

from manylora.adapters.format.pooling import Pooling
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import EncodedTexts
from manylora.adapters.training.model.embedding import pooled
from manylora.adapters.training.model.forward import pad_right
from manylora.adapters.training.trainers.contrast import (
    cosine_loss,
    excluded_candidates,
    ranking_loss,
    ranking_scores,
)
from manylora.adapters.training.trainers.pooled import Accuracy
from manylora.adapters.training.trainers.quiet_trainer import RowMeanTrainer


class EmbeddingTrainer(RowMeanTrainer, Trainer):  # type: ignore[misc]
    """Brings texts that belong together near each other; batches are those of :class:`PaddedContrasts`."""

    def __init__(self, config: TrainConfig, pooling: Pooling, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = False  # what the model would divide by is learned tokens, not rows
        self._config = config
        self._pooling = pooling
        self._accuracy = Accuracy(self)

    def rows_of(self, batch: dict[str, Any]) -> int:
        """Rows, each of which has several texts."""
        return len(batch["scores"] if "scores" in batch else batch["excluded"])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: ARG002 - there are none but the loss
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002 - it counts rows
    ) -> Any:
        rows, mask = self.rows_of(inputs), inputs["attention_mask"]
        states = model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
        vectors = pooled(states, mask, self._pooling)
        if "scores" in inputs:
            loss = cosine_loss(vectors[:rows], vectors[rows:], inputs["scores"])
        else:
            found = ranking_scores(vectors[:rows], vectors[rows:], inputs["excluded"])
            symmetric = self._config.embed_symmetric
            loss = ranking_loss(found, self._config.embed_temperature, symmetric=symmetric)
            own = torch.arange(len(found), device=found.device)
            self._accuracy.add(found.argmax(1) == own)  # whose own positive is the nearest candidate
        return loss * self.share_of_step(inputs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *_args: Any, **_options: Any
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch, which has no labels for transformers to know that there is one."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Add what was measured since the last log of the kind."""
        super().log({**logs, **self._accuracy.take()}, *args, **options)


def embedding_dataset(items: Sequence[Item]) -> Dataset:
    """The ids of the texts of each row, and the cosine that the two should have."""
    return Dataset.from_list(
        [{"texts": i.texts, "score": i.score} for i in items if isinstance(i, EncodedTexts)]
    )


class PaddedContrasts:
    """Collates rows: all anchors, all positives, then all negatives, so that one pass does for a batch."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids and attention_mask int64 [texts, longest], padded on the right.

        With them excluded bool [rows, candidates] where the positive is to be found, else scores float32
        [rows].
        """
        texts = [row["texts"] for row in rows]
        flat = [row[0] for row in texts] + [row[1] for row in texts] + [t for row in texts for t in row[2:]]
        ids, mask = pad_right(flat, self._pad_id)
        if rows[0]["score"] is None:
            wanted = {"excluded": excluded_candidates(texts)}
        else:
            wanted = {"scores": torch.tensor([row["score"] for row in rows], dtype=torch.float32)}
        return {**wanted, "input_ids": ids, "attention_mask": mask}
