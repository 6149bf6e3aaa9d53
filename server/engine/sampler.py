"""From logits to tokens: penalties, what is drawn from the rest, and log-probabilities.

Every row is handled by row-wise arithmetic and its own random stream, so that a request's tokens do
not depend on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from manylora.server.engine.sequence import Sequence, TokenLogprob
from manylora.server.kernels.draws import Draw, Draws

_GREEDY_BELOW = 1e-5  # temperatures under this would overflow the division


def sample(logits: torch.Tensor, sequences: Seq[Sequence], end_ids: frozenset[int], draw: Draw) -> list[int]:
    """Draw one token per row of ``logits`` [n, V], by ``draw``; row i belongs to ``sequences[i]``.

    ``end_ids`` end an answer and are held back until ``min_tokens`` are there; a sequence with a
    tokenizer of its own has its own.
    """
    params = [s.params for s in sequences]
    temperature = [p.temperature if p.temperature >= _GREEDY_BELOW else 0.0 for p in params]
    uniform = [s.rng.random() if t else 0.0 for s, t in zip(sequences, temperature, strict=True)]
    return draw(
        Draws(
            logits,
            temperature=np.array(temperature, np.float32),
            top_k=np.array([p.top_k for p in params], np.int64),
            top_p=np.array([p.top_p for p in params], np.float64),
            min_p=np.array([p.min_p for p in params], np.float32),
            uniform=np.array(uniform, np.float64),
            replaced={
                i: _adjusted(logits[i], s, end_ids) for i, s in enumerate(sequences) if _is_adjusted(s)
            },
        )
    )


def logprobs_of(logits: torch.Tensor, token_ids: Seq[int], top: int) -> list[TokenLogprob]:
    """Log-probabilities of ``token_ids`` [n] and of the ``top`` likeliest under ``logits`` [n, V]."""
    table = torch.log_softmax(logits.float(), dim=-1)
    chosen = table.gather(1, torch.tensor(token_ids, device=table.device)[:, None])[:, 0].tolist()
    if top == 0:
        return [TokenLogprob(t, lp) for t, lp in zip(token_ids, chosen, strict=True)]
    values, indices = table.topk(min(top, table.shape[1]), dim=-1)
    best = [tuple(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(t, lp, b) for t, lp, b in zip(token_ids, chosen, best, strict=True)]


def _is_adjusted(sequence: Sequence) -> bool:
    p = sequence.params
    penalized = p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0 or p.logit_bias
    return bool(penalized) or sequence.num_output_tokens < p.min_tokens


def _adjusted(logits: torch.Tensor, sequence: Sequence, end_ids: frozenset[int]) -> torch.Tensor:
    """One row [V] after penalties, bias and the ban on early ends, a float32 copy."""
    row = torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)
    p = sequence.params
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.token_ids)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if (p.presence_penalty or p.frequency_penalty) and sequence.num_output_tokens:
        tokens, counts = torch.tensor(sequence.output_ids, device=row.device).unique(return_counts=True)
        row[tokens] -= p.presence_penalty + p.frequency_penalty * counts
    if p.logit_bias:
        row[torch.tensor(list(p.logit_bias), device=row.device)] += torch.tensor(
            list(p.logit_bias.values()), device=row.device
        )
    if sequence.num_output_tokens < p.min_tokens:
        ends = end_ids if sequence.tokenizer is None else sequence.tokenizer.eos_ids
        banned = [*(() if p.ignore_eos else ends), *p.stop_token_ids]
        row[torch.tensor(banned, dtype=torch.long, device=row.device)] = float("-inf")
    return row
