"""From logits to tokens: penalties, what is drawn from the rest, and log-probabilities.

Every row is handled by row-wise arithmetic and its own random stream, so that a request's tokens do
not depend on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from manylora.server.engine.sampling.adjustments import adjusted, held_back, is_adjusted
from manylora.server.engine.sequence import Sequence, TokenLogprob
from manylora.server.kernels.draws import Draw, Draws
from manylora.server.kernels.reference import exact

_GREEDY_BELOW = 1e-5  # temperatures under this would overflow the division


class SampledRows:
    """The rows of one step, or of several of the same sequences, that draw a token; row i is sequence i's."""

    def __init__(self, sequences: Seq[Sequence]) -> None:
        self.sequences = sequences
        params = [s.params for s in sequences]
        temperature = [p.temperature if p.temperature >= _GREEDY_BELOW else 0.0 for p in params]
        self._temperature = np.array(temperature, np.float32)
        self._top_k = np.array([p.top_k for p in params], np.int64)
        self._top_p = np.array([p.top_p for p in params], np.float64)
        self._min_p = np.array([p.min_p for p in params], np.float32)
        self._uniform = np.zeros(len(sequences), np.float64)
        self._random = [(i, sequences[i].rng) for i, t in enumerate(temperature) if t]
        self._adjustable = [i for i, s in enumerate(sequences) if is_adjusted(s)]
        self.constrained = [s for s in sequences if s.grammar is not None]
        self._allowed = {i: s.grammar.allowed for i, s in enumerate(sequences) if s.grammar is not None}
        self._masked = [(i, s, s.mask) for i, s in enumerate(sequences) if s.mask is not None]
        self._draws: Draws | None = None

    def draws(self, logits: torch.Tensor, end_ids: frozenset[int]) -> Draws:
        """How these rows of ``logits`` [n, V] are drawn from; takes a number of each row's random stream."""
        for i, rng in self._random:
            self._uniform[i] = rng.random()
        for i, s, mask in self._masked:
            grammar = None if s.grammar is None else s.grammar.allowed
            held = held_back(s, end_ids)
            self._allowed[i] = mask.fill(logits.shape[1], s.token_ids, s.num_prompt_tokens, grammar, held)
        if self._adjustable:
            return self._new_draws(logits, self._adjusted(logits, end_ids))
        if self._draws is None or self._draws.logits is not logits:
            self._draws = self._new_draws(logits, {})
        return self._draws

    def _new_draws(self, logits: torch.Tensor, replaced: dict[int, torch.Tensor]) -> Draws:
        return Draws(
            logits,
            temperature=self._temperature,
            top_k=self._top_k,
            top_p=self._top_p,
            min_p=self._min_p,
            uniform=self._uniform,
            replaced=replaced,
            allowed=self._allowed,
        )

    def _adjusted(self, logits: torch.Tensor, end_ids: frozenset[int]) -> dict[int, torch.Tensor]:
        """The rows that differ from the logits. Once past its minimum a row may not any more."""
        rows = [i for i in self._adjustable if is_adjusted(self.sequences[i])]
        if not rows:
            return {}
        table = adjusted(logits, rows, [self.sequences[i] for i in rows], end_ids)
        return dict(zip(rows, table, strict=True))


def sample(logits: torch.Tensor, rows: SampledRows, end_ids: frozenset[int], draw: Draw) -> list[int]:
    """Draw one token per row of ``logits`` [n, V], by ``draw``.

    ``end_ids`` end an answer and are held back until ``min_tokens`` are there; a sequence with a
    tokenizer of its own has its own.
    """
    return draw(rows.draws(logits, end_ids))


def width_of(sequence: Sequence, base: int) -> int:
    """How many tokens the sequence knows, or classes; the base knows ``base`` tokens."""
    return sequence.mix.num_classes or max(base, sequence.vocab_size)


def by_width(wanted: Iterable[tuple[Sequence, int]], logits: torch.Tensor, base: int) -> dict[int, list[int]]:
    """The indices of ``wanted`` by the number of tokens its sequences know; mostly one group of all.

    What a sequence draws must not depend on the vocabularies of others in the batch.
    """
    if logits.shape[1] == base:
        return {base: list(range(len(list(wanted))))}
    groups: dict[int, list[int]] = {}
    for i, (sequence, _) in enumerate(wanted):
        groups.setdefault(width_of(sequence, base), []).append(i)
    return groups


@dataclass(frozen=True)
class LogProbabilities:
    """How they are computed of logits [n, V] float32."""

    of: Callable[[torch.Tensor], torch.Tensor]  # [n, V] of all tokens
    # The largest [n, k] of a table, in falling order, and their tokens.
    largest: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


LIBRARY = LogProbabilities(lambda logits: torch.log_softmax(logits, dim=-1), lambda t, k: t.topk(k, dim=-1))
EXACT = LogProbabilities(exact.log_softmax, exact.likeliest)  # the same bits for any number of rows


def logprobs_of(
    logits: torch.Tensor, token_ids: Seq[int], top: int, how: LogProbabilities = LIBRARY
) -> list[TokenLogprob]:
    """Log-probabilities of ``token_ids`` [n] and of the ``top`` likeliest under ``logits`` [n, V]."""
    table = how.of(logits.float())
    chosen = table.gather(1, torch.tensor(token_ids, device=table.device)[:, None])[:, 0].tolist()
    if top == 0:
        return [TokenLogprob(t, lp) for t, lp in zip(token_ids, chosen, strict=True)]
    values, indices = how.largest(table, min(top, table.shape[1]))
    best = [tuple(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(t, lp, b) for t, lp, b in zip(token_ids, chosen, best, strict=True)]


def drawn_logprobs(
    logits: torch.Tensor,
    sampling: Seq[tuple[Sequence, int]],
    tokens: Seq[int],
    base: int,
    how: LogProbabilities = LIBRARY,
) -> dict[int, TokenLogprob]:
    """Of the drawn ``tokens``, for the sequences in ``sampling`` that asked for it: by the sequence's id.

    With each sequence comes its row of ``logits``; the base knows ``base`` tokens.
    """
    wanted = [
        (sequence, row, token)
        for (sequence, row), token in zip(sampling, tokens, strict=True)
        if sequence.params.logprobs is not None
    ]
    if not wanted:
        return {}
    top = max(s.params.logprobs or 0 for s, _, _ in wanted)
    result = {}
    for width, members in by_width([(s, row) for s, row, _ in wanted], logits, base).items():
        chosen = [wanted[i] for i in members]
        rows = logits[[row for _, row, _ in chosen], :width]
        found = logprobs_of(rows, [t for _, _, t in chosen], top, how)
        for (s, _, _), lp in zip(chosen, found, strict=True):
            result[s.id] = TokenLogprob(lp.token_id, lp.logprob, lp.top[: s.params.logprobs])
    return result
