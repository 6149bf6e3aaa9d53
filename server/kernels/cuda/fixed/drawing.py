"""Drawing tokens on a device so that what a row gets has nothing to do with how many others there are.

As :mod:`manylora.server.kernels.cuda.drawing`, with probabilities whose sums are exact. Rows that need more
tokens than the candidates are drawn once more, from all of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.drawing import CANDIDATES, Rows
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.reference.exact import likeliest, share_of, weights_of
from manylora.server.kernels.reference.sampling import Limits, table_of

TOGETHER = 32  # rows drawn at a time: whole numbers of 64 bits for every token take much memory


@torch.inference_mode()
def draw(draws: Draws) -> list[int]:
    """Draw one token per row as :class:`Draws` defines it."""
    table = table_of(draws)
    rows = Rows.of(draws, table)
    tokens = table.argmax(-1)
    enough = torch.ones_like(tokens)
    if rows.whole is not None:
        for some in rows.whole.split(TOGETHER):
            tokens[some] = _draw_whole(rows.scaled(table, some), rows.uniform[some])
    if rows.cut is not None:
        for some in rows.cut.split(TOGETHER):
            tokens[some], enough[some] = _draw_cut(table, rows, some, CANDIDATES)
    drawn, complete = torch.stack([tokens, enough]).tolist()  # the one time that the host waits
    again = torch.tensor([row for row, known in enumerate(complete) if not known], dtype=torch.long)
    if len(again):
        found = torch.cat(list(_draw_again(table, rows, sent(again.numpy(), table.device))))
        for row, token in zip(again.tolist(), found.tolist(), strict=True):
            drawn[row] = token
    return drawn  # type: ignore[no-any-return]


def _draw_again(table: torch.Tensor, rows: Rows, again: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tokens of the rows ``again``, from all of theirs."""
    for some in again.split(TOGETHER):
        yield _draw_cut(table, rows, some, table.shape[1])[0]


def _draw_whole(scaled: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A token [w] for each row of ``scaled`` [w, V] by its probability, summed in the order of ids."""
    return _pick(weights_of(scaled), uniform)


def _draw_cut(
    table: torch.Tensor, rows: Rows, cut: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [c] of the rows ``cut``, and whether ``count`` candidates were enough for them [c] int64."""
    scaled, limits = rows.scaled(table, cut), rows.limits(cut)
    vocabulary = scaled.shape[1]
    weights = weights_of(scaled)
    _, order = likeliest(scaled, min(count, vocabulary))
    kept = _truncate(weights.gather(1, order), weights.sum(-1, keepdim=True), vocabulary, limits)
    tokens = order.gather(1, _pick(kept, rows.uniform[cut])[:, None])[:, 0]
    enough = (kept[:, -1] == 0) & (limits.top_k[:, 0] <= order.shape[1])
    return tokens, (enough | (order.shape[1] == vocabulary)).long()


def _truncate(weights: torch.Tensor, total: torch.Tensor, vocabulary: int, limits: Limits) -> torch.Tensor:
    """The weights [n, k] int64 of candidates in falling order, those that are cut set to 0.

    ``total`` [n, 1]: of all ``vocabulary`` tokens.
    """
    top_k = torch.where(limits.top_k > 0, limits.top_k, vocabulary)
    beyond = torch.arange(weights.shape[1], device=weights.device) >= top_k
    weights = weights.masked_fill(beyond, 0)
    passed = weights.cumsum(-1)
    mass = torch.where(top_k < vocabulary, passed[:, -1:], total).double()
    keep = (passed - weights).double() < limits.top_p * mass
    keep &= weights.double() >= limits.min_p.double() * weights[:, :1].double()
    keep[:, 0] = True
    return weights.masked_fill(~keep, 0)


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The index [n] at which ``weights`` [n, k] pass the share ``uniform`` [n, 1] of their sum."""
    passed = weights.cumsum(-1)
    index = torch.searchsorted(passed, share_of(passed[:, -1:], uniform), right=True)[:, 0]
    return index.clamp_(max=weights.shape[1] - 1)  # of a row that is no distribution
