"""What an adapter changes about the tables of the vocabulary: the input embeddings and the output head."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TableDelta:
    """The change to one table ``T`` [V, D]; parts that the adapter does not have are None.

    The embedding of token t is ``T'[t] + s B A[:, t]``, and the head's logits for the hidden state h are
    ``T' h + s B (A h)``, where ``T'`` is the base's table, replaced by ``table``, of which the rows
    ``tokens`` are replaced by ``rows``. Tensors are as stored, float32, float16 or bfloat16.
    """

    table: torch.Tensor | None = None  # [V', D] modules_to_save, or the table that training began with
    tokens: tuple[int, ...] = ()  # trainable_token_indices
    rows: torch.Tensor | None = None  # [len(tokens), D]
    a: torch.Tensor | None = None  # [r, V'] of the embeddings, [r, D] of the head
    b: torch.Tensor | None = None  # [D, r] of the embeddings, [V', r] of the head
    scaling: float = 1.0  # s

    @property
    def rank(self) -> int:
        """The rank of the change: rows of A."""
        return 0 if self.a is None else self.a.shape[0]


@dataclass(frozen=True, slots=True)
class VocabularyDelta:
    """The changes to both tables; None where the adapter leaves one alone."""

    size: int  # V', tokens that the adapter knows: those of the base, and more where it was resized
    embedding: TableDelta | None = None
    head: TableDelta | None = None
    classes: torch.Tensor | None = None  # [n, D] the head of an adapter that classifies, instead of tokens

    @property
    def rank(self) -> int:
        """The larger rank of the two tables' changes; 0 where neither has A and B."""
        return max(0 if table is None else table.rank for table in (self.embedding, self.head))
