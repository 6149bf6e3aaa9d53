"""Penalties, biases and bans: changes of single logits before a token is drawn.

What changes is put together on the host, for all rows of a step, and sent to their device in one piece, so
that no row waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.buffers import sent
from manylora.server.kernels.inputs import Float32, Int64

_Change = tuple[Int64, Float32]  # tokens, each once, and a number for each of them


def is_adjusted(sequence: Sequence) -> bool:
    """Whether anything is changed about the logits of the sequence's next token."""
    p = sequence.params
    penalized = p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0 or p.logit_bias
    return bool(penalized) or _must_go_on(sequence)


def _must_go_on(sequence: Sequence) -> bool:
    """Whether the answer may not end yet. A grammar that has come to its end decides."""
    over = sequence.grammar is not None and sequence.grammar.only_ends
    return sequence.num_output_tokens < sequence.params.min_tokens and not over


def held_back(sequence: Sequence, end_ids: frozenset[int]) -> list[int]:
    """The tokens that would end the answer before it may; ``end_ids`` are the base's."""
    if not _must_go_on(sequence):
        return []
    p = sequence.params
    ends = end_ids if sequence.tokenizer is None else sequence.tokenizer.eos_ids
    return sorted({*(() if p.ignore_eos else ends), *p.stop_token_ids})


def adjusted(
    logits: torch.Tensor, rows: Seq[int], sequences: Seq[Sequence], end_ids: frozenset[int]
) -> torch.Tensor:
    """A float32 copy [r, V] of some ``rows`` of ``logits`` [n, V], as their ``sequences`` want them.

    ``end_ids`` are banned until a sequence has its ``min_tokens``; an own tokenizer has its own.
    """
    width = logits.shape[1]
    changes = [_changes(sequence, end_ids) for sequence in sequences]
    parts = []  # of each sort of change: the places in the copy, then the numbers
    for sort in range(_SORTS):
        found = [_placed(c[sort], i, width) for i, c in enumerate(changes)]
        parts += [np.concatenate([places for places, _ in found]), np.concatenate([n for _, n in found])]
    packed = sent(np.concatenate([np.array(rows), *parts]).astype(np.float64), logits.device)
    which, *rest = packed.split([len(rows), *(len(part) for part in parts)])
    table = logits.index_select(0, which.long()).float()
    _apply(table.view(-1), [(p.long(), n.float()) for p, n in zip(rest[::2], rest[1::2], strict=True)])
    return table


def _placed(change: _Change, row: int, width: int) -> _Change:
    """Places in a table of so wide rows for the tokens; those that the row does not have are none of it."""
    tokens, numbers = change
    known = (tokens >= 0) & (tokens < width)
    return row * width + tokens[known], numbers[known]


def _apply(flat: torch.Tensor, changes: Seq[tuple[torch.Tensor, torch.Tensor]]) -> None:
    (repeated, factor), (penalized, penalty), (biased, bias), (banned, _) = changes
    if len(repeated):
        values = flat[repeated]
        flat[repeated] = torch.where(values > 0, values / factor, values * factor)
    if len(penalized):
        flat[penalized] -= penalty
    if len(biased):
        flat[biased] += bias
    if len(banned):
        flat.index_fill_(0, banned, float("-inf"))


_SORTS = 4  # repeated, penalized, biased, banned: they are made in this order


def _changes(sequence: Sequence, end_ids: frozenset[int]) -> tuple[_Change, _Change, _Change, _Change]:
    p = sequence.params
    return (
        _repeated(sequence) if p.repetition_penalty != 1.0 else _NONE,
        _penalized(sequence) if p.presence_penalty or p.frequency_penalty else _NONE,
        _change(list(p.logit_bias), list(p.logit_bias.values())) if p.logit_bias else _NONE,
        _banned(held_back(sequence, end_ids)),
    )


def _repeated(sequence: Sequence) -> _Change:
    seen = np.unique(np.array(sequence.token_ids, np.int64))
    return seen, np.full(len(seen), sequence.params.repetition_penalty, np.float32)


def _penalized(sequence: Sequence) -> _Change:
    p = sequence.params
    tokens, counts = np.unique(np.array(sequence.output_ids, np.int64), return_counts=True)
    each = np.float32(p.frequency_penalty) * counts.astype(np.float32)
    return tokens, np.float32(p.presence_penalty) + each


def _banned(tokens: Seq[int]) -> _Change:
    return _change(tokens, [0.0] * len(tokens)) if tokens else _NONE


def _change(tokens: Seq[int], numbers: Seq[float]) -> _Change:
    return np.array(tokens, np.int64), np.array(numbers, np.float32)


_NONE = _change([], [])
