"""Embeddings and logits of rows whose mix has a vocabulary of its own, around a step of any backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from manylora.server.kernels.inputs import (
    ClassPages,
    EmbeddedRows,
    Int64,
    LoraInputs,
    StepInputs,
    VocabularyPages,
)

Members = tuple[tuple[VocabularyPages, float], ...]
Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [n, in] and W [out, in] to x W^T


@dataclass(frozen=True)
class _Group:
    """Adjacent sequences with the same members that have a vocabulary of their own."""

    members: Members
    rows: Int64  # of the step, ascending
    logits: Int64  # of the step's logits

    @property
    def size(self) -> int:
        return max(vocabulary.size for vocabulary, _ in self.members)


class VocabularyPlan:
    """The vocabulary work of one step."""

    def __init__(
        self,
        pool: torch.Tensor,
        embedding: torch.Tensor,
        groups: Sequence[_Group],
        vocab_size: int,
        multiply: Multiply,
    ) -> None:
        """``embedding`` [V, D] is the base's; ``vocab_size`` are the tokens that its head has."""
        self._pool = pool
        self._embedding = embedding
        self._groups = groups
        self._vocab_size = vocab_size
        self._multiply = multiply

    @torch.inference_mode()
    def prepare(self, inputs: StepInputs) -> StepInputs:
        """The step with the embeddings of the rows concerned given, and room for their hidden states."""
        parts = [(g, g.rows) for g in self._groups if any(v.embedding for v, _ in g.members)]
        tokens = inputs.token_ids
        embedded = None
        if parts:
            rows = np.concatenate([rows for _, rows in parts])
            values = torch.cat([self._embed(group.members, tokens[rows]) for group, rows in parts])
            embedded = EmbeddedRows(rows, values.contiguous())
            tokens = np.where(tokens < len(self._embedding), tokens, 0)
        hidden = None
        if any(v.head or v.classes for g in self._groups for v, _ in g.members):
            shape = len(inputs.logits_rows), self._embedding.shape[1]
            hidden = torch.empty(shape, dtype=self._embedding.dtype, device=self._embedding.device)
        return replace(
            inputs, token_ids=tokens, embedded=embedded, hidden=hidden, raw_logits=hidden is not None
        )

    @torch.inference_mode()
    def correct(self, logits: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """The head's product [R, W] with the adapters' own in it; W is the step's largest vocabulary.

        What a model makes of logits comes behind it, then :meth:`conclude`.
        """
        width = max([logits.shape[1], *(group.size for group in self._groups)])
        wide = F.pad(logits, (0, width - logits.shape[1]))
        for group in self._groups:
            if len(group.logits) and any(vocabulary.head for vocabulary, _ in group.members):
                assert hidden is not None
                rows = torch.from_numpy(group.logits).to(logits.device)
                wide[rows] = self._head(group.members, wide[rows], hidden[rows])
        return wide

    @torch.inference_mode()
    def conclude(self, logits: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """The logits [R, W] with classes in place of some, minus infinity behind each row's vocabulary."""
        return self._mask(self._classify(logits, hidden))

    def _classify(self, logits: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        heads = [(g, v.classes) for g in self._groups for v, _ in g.members if v.classes and len(g.logits)]
        if not heads:
            return logits
        assert hidden is not None
        missing = max(pages.count for _, pages in heads) - logits.shape[1]
        wide = F.pad(logits.float(), (0, max(0, missing)))  # 16 bits are too few for probabilities
        for group, pages in heads:
            rows = torch.from_numpy(group.logits).to(wide.device)
            head = self._class_head(pages, hidden.shape[1])
            wide[rows, : pages.count] = self._multiply(hidden[rows].float(), head)
        return wide

    def _class_head(self, pages: ClassPages, width: int) -> torch.Tensor:
        size = pages.count * width * _FLOAT_BYTES // self._pool.element_size()
        return self._pool[pages.start : pages.start + size].view(torch.float32).view(pages.count, width)

    def _mask(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] > self._vocab_size:
            own = torch.full((len(logits), 1), self._vocab_size)
            for group in self._groups:
                own[torch.from_numpy(group.logits)] = group.size
            columns = torch.arange(logits.shape[1], device=logits.device)
            logits.masked_fill_(columns >= own.to(logits.device), float("-inf"))
        return logits

    def _embed(self, members: Members, tokens: Int64) -> torch.Tensor:
        """Embeddings [n, D] float32 of ``tokens`` [n]."""
        device = self._embedding.device
        known = torch.from_numpy(np.where(tokens < len(self._embedding), tokens, 0)).to(device)
        base = self._embedding[known].float()
        base[torch.from_numpy(tokens >= len(self._embedding)).to(device)] = 0
        total = base.clone()
        for vocabulary, weight in members:
            if vocabulary.embedding is not None:
                self._add_embedding(vocabulary, weight, tokens, base, total)
        return total

    def _add_embedding(
        self,
        vocabulary: VocabularyPages,
        weight: float,
        tokens: Int64,
        base: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        pages = vocabulary.embedding
        assert pages is not None
        width = base.shape[1]
        place = np.searchsorted(pages.tokens, tokens)
        inside = np.minimum(place, max(len(pages.tokens) - 1, 0))
        found = np.flatnonzero(pages.tokens[inside] == tokens) if len(pages.tokens) else _NONE
        if len(found):
            here = torch.from_numpy(found).to(base.device)
            rows = self._view(pages.rows, len(pages.tokens), width)
            own = rows[torch.from_numpy(inside[found]).to(base.device)].float()
            total[here] += weight * (own - base[here])
        if pages.rank:
            here = torch.from_numpy(np.flatnonzero(tokens < vocabulary.size)).to(base.device)
            known = torch.from_numpy(tokens).to(base.device)[here]
            a = self._view(pages.a, vocabulary.size, pages.rank)[known].float()
            b = self._view(pages.b, pages.rank, width).float()
            total[here] += weight * self._multiply(a, b.T)

    def _head(self, members: Members, logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, W] of rows whose base logits are ``logits`` and hidden states ``hidden`` [n, D]."""
        base = logits.float()
        total = base.clone()
        for vocabulary, weight in members:
            if vocabulary.head is not None:
                self._add_head(vocabulary, weight, hidden, base=base, total=total)
        return total.to(logits.dtype)

    def _add_head(
        self,
        vocabulary: VocabularyPages,
        weight: float,
        hidden: torch.Tensor,
        *,
        base: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        pages, size, width = vocabulary.head, vocabulary.size, hidden.shape[1]
        assert pages is not None
        if len(pages.tokens):
            rows = self._view(pages.rows, len(pages.tokens), width)
            tokens = torch.from_numpy(pages.tokens).to(hidden.device)
            own = self._multiply(hidden, rows).float()
            total[:, tokens] += weight * (own - base[:, tokens])
        if pages.rank:
            reduced = weight * self._multiply(hidden, self._view(pages.a, pages.rank, width)).float()
            b = self._view(pages.b, pages.rank, size)
            total[:, :size] += self._multiply(reduced.to(b.dtype), b.T).float()

    def _view(self, start: int, rows: int, columns: int) -> torch.Tensor:
        return self._pool[start : start + rows * columns].view(rows, columns)


_FLOAT_BYTES = 4
_NONE: Int64 = np.empty(0, np.int64)


def plan_vocabulary(
    pool: torch.Tensor,
    embedding: torch.Tensor,
    inputs: StepInputs,
    vocab_size: int,
    multiply: Multiply = F.linear,
) -> VocabularyPlan | None:
    """The vocabulary work of a step; None, after a look at the step's adapters, where there is none."""
    lora = inputs.lora
    if lora is None or all(pages.vocabulary is None for pages in lora.adapters):
        return None
    groups = []
    members = [_members(lora, s) for s in range(len(lora.start) - 1)]
    first = 0
    while first < len(members):
        last = first + 1
        while last < len(members) and members[last] == members[first]:
            last += 1
        if members[first]:
            start, stop = int(inputs.query_start[first]), int(inputs.query_start[last])
            logits = np.flatnonzero((inputs.logits_rows >= start) & (inputs.logits_rows < stop))
            groups.append(_Group(members[first], np.arange(start, stop), logits))
        first = last
    return VocabularyPlan(pool, embedding, groups, vocab_size, multiply)


def _members(inputs: LoraInputs, sequence: int) -> Members:
    entries = range(inputs.start[sequence], inputs.start[sequence + 1])
    found = [(inputs.adapters[inputs.adapter[e]].vocabulary, float(inputs.weight[e])) for e in entries]
    return tuple((vocabulary, weight) for vocabulary, weight in found if vocabulary is not None)
