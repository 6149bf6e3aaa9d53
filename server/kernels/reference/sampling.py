"""Drawing tokens in plain PyTorch, on any device; the definition of the other backends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.draws import Draws

_CANDIDATES = 512  # truncated sampling looks at about so many likeliest tokens before it sorts all
_GROUP = 32  # tokens, of which the likeliest bounds what can be among the candidates
_PIECE = 256  # tokens whose probabilities are summed before the sums are


@dataclass(frozen=True)
class Limits:
    """What :class:`Draws` keeps of the tokens of n rows, on the device of their logits."""

    top_k: torch.Tensor  # [n, 1] int64
    top_p: torch.Tensor  # [n, 1] float64
    min_p: torch.Tensor  # [n, 1] float32

    @classmethod
    def of(cls, draws: Draws, rows: np.ndarray, like: torch.Tensor) -> Limits:
        """Those of some ``rows``."""
        return cls(*(_column(all_[rows], like) for all_ in (draws.top_k, draws.top_p, draws.min_p)))


def draw(draws: Draws) -> list[int]:
    """Draw one token per row as :class:`Draws` defines it."""
    table = table_of(draws)
    drawn = np.flatnonzero(draws.temperature)
    if not len(drawn):
        return _likeliest(table)
    tokens = torch.empty(len(table), dtype=torch.long, device=table.device)
    if len(drawn) < len(table):
        greedy = np.flatnonzero(draws.temperature == 0)
        tokens[greedy] = torch.tensor(_likeliest(table[greedy]), device=table.device)
    scaled = _rows(table, drawn) / _column(draws.temperature[drawn], table)
    tokens[drawn] = _draw(scaled, draws, drawn)
    return tokens.tolist()


def table_of(draws: Draws) -> torch.Tensor:
    """The logits [n, V] float32 to draw from; not to be changed."""
    table = draws.logits.float()
    if draws.replaced:
        table = table.clone() if table is draws.logits else table
        for row, values in draws.replaced.items():
            table[row] = values
    if draws.allowed:
        table = table.clone() if table is draws.logits else table
        rows = sent(np.array(list(draws.allowed)), table.device)
        table[rows] = table[rows].masked_fill_(_left_out(draws, table), float("-inf"))
    return table


def _left_out(draws: Draws, table: torch.Tensor) -> torch.Tensor:
    """Which tokens may not be drawn, [rows of ``draws.allowed``, V] bool on the device of ``table``."""
    width = table.shape[1]
    words = np.stack([words[: -(-width // 32)] for words in draws.allowed.values()])
    packed = sent(words, table.device)
    bits = packed[:, :, None] >> torch.arange(32, dtype=torch.int32, device=table.device)
    return ((bits & 1) == 0).flatten(1)[:, :width]


def _likeliest(logits: torch.Tensor) -> list[int]:
    """The likeliest token per row, the first of equal ones. NumPy takes a tenth of torch's time on a CPU."""
    if logits.device.type == "cpu":
        return logits.numpy().argmax(-1).tolist()  # type: ignore[no-any-return]
    return logits.argmax(-1).tolist()


def _column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """``values`` [n] as a tensor [n, 1] on the device of ``like``."""
    return torch.from_numpy(values).to(like.device)[:, None]


def _draw(scaled: torch.Tensor, draws: Draws, rows: np.ndarray) -> torch.Tensor:
    """Token per row of ``scaled`` [n, V], rows with and without truncation each in one go.

    Row i of ``scaled``, which is overwritten, belongs to row ``rows[i]`` of ``draws``.
    """
    tokens = torch.empty(len(rows), dtype=torch.long, device=scaled.device)
    limited = (draws.top_k[rows] > 0) & (draws.top_k[rows] < scaled.shape[1])
    truncated = limited | (draws.top_p[rows] < 1) | (draws.min_p[rows] > 0)
    some = np.flatnonzero(truncated)
    if len(some):
        tokens[some] = _draw_truncated(_rows(scaled, some), draws, rows[some])
    whole = np.flatnonzero(~truncated)
    if len(whole):
        uniform = _column(draws.uniform[rows[whole]], scaled)
        tokens[whole] = draw_whole(_rows(scaled, whole), uniform)
    return tokens


def _rows(table: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Some rows of a table, ascending: the table itself if all, else a copy. Copies cost more than sums."""
    return table if len(rows) == len(table) else table[rows]


def draw_whole(scaled: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Token per row of ``scaled`` [n, V] by its probability: first the piece it lies in, then the token.

    ``uniform`` [n, 1].

    Computes in place: ``scaled`` is overwritten.
    """
    weights = scaled.sub_(scaled.amax(-1, keepdim=True)).exp_()
    if missing := -weights.shape[1] % _PIECE:
        weights = torch.nn.functional.pad(weights, (0, missing))
    pieces = weights.unflatten(1, (-1, _PIECE))
    sums = pieces.sum(-1, dtype=torch.float64)
    passed = sums.cumsum(-1)
    target = uniform * passed[:, -1:]
    piece = torch.searchsorted(passed, target, right=True).clamp_(max=sums.shape[1] - 1)
    rest = target - (passed - sums).gather(1, piece)
    inside = pieces[torch.arange(len(pieces), device=pieces.device), piece[:, 0]].double().cumsum(-1)
    rest = rest.minimum(
        inside[:, -1:].nextafter(torch.zeros_like(rest))
    )  # else rounding may pass the last one
    token = piece * _PIECE + torch.searchsorted(inside, rest, right=True)
    return token[:, 0].clamp_(max=scaled.shape[1] - 1)


def _draw_truncated(scaled: torch.Tensor, draws: Draws, rows: np.ndarray) -> torch.Tensor:
    """Top-k, then top-p, then min-p, on candidates in falling order of probability.

    The few rows that may need more candidates are drawn again from all tokens. Only the row itself
    decides that: what a request gets must not depend on its neighbours.
    """
    vocabulary = scaled.shape[1]
    uniform = _column(draws.uniform[rows], scaled)
    values, order = candidates(scaled)
    count = values.isneginf().logical_not_().sum(-1)
    limits = Limits.of(draws, rows, scaled)
    kept = truncate(values, scaled.logsumexp(-1, keepdim=True), vocabulary, limits)
    tokens = pick(kept, order, uniform)
    last = kept.gather(1, (count - 1).clamp_(min=0)[:, None])[:, 0]
    found = zip(count.tolist(), (last > 0).tolist(), draws.top_k[rows].tolist(), strict=True)
    beyond = [i for i, (n, uncut, top_k) in enumerate(found) if n < vocabulary and (uncut or n < top_k)]
    if beyond:
        values, order = scaled[beyond].sort(dim=-1, descending=True, stable=True)
        total = scaled[beyond].logsumexp(-1, keepdim=True)
        kept = truncate(values, total, vocabulary, Limits.of(draws, rows[beyond], scaled))
        tokens[beyond] = pick(kept, order, uniform[beyond])
    return tokens


def candidates(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens of each row of ``scaled`` [n, V]: their values in falling order, and their ids.

    At least ``_CANDIDATES`` of each row, as a rule few more: all that reach the value which so many of its
    groups of tokens reach. Equal ones stand in the order of their ids. Rows with fewer than the longest
    end in -inf. Choosing them this way takes a fifth of the time of ``topk``.
    """
    groups = scaled.shape[1] // _GROUP
    if groups < 2 * _CANDIDATES:
        values, order = scaled.sort(dim=-1, descending=True, stable=True)
        return values, order
    best = scaled[:, : groups * _GROUP].unflatten(1, (_GROUP, groups)).amax(1)
    bound = best.topk(_CANDIDATES, dim=-1).values[:, -1:]
    rows, ids = (scaled < bound).logical_not_().nonzero(as_tuple=True)
    counts = rows.bincount(minlength=len(scaled))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    values = scaled.new_full((len(scaled), int(counts.max())), float("-inf"))
    values[rows, place] = scaled[rows, ids]
    order = torch.zeros_like(values, dtype=torch.long)
    order[rows, place] = ids
    values, index = values.sort(dim=-1, descending=True, stable=True)
    return values, order.gather(1, index)


def pick(kept: torch.Tensor, order: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token id [n] drawn from the candidates ``order`` [n, k] with the probabilities ``kept`` [n, k]."""
    return order.gather(1, _invert_cdf(kept, uniform)[:, None])[:, 0]


def truncate(values: torch.Tensor, total: torch.Tensor, vocabulary: int, limits: Limits) -> torch.Tensor:
    """Probabilities [n, k] of candidates with ``values`` in falling order, those that are cut set to 0.

    ``total`` [n, 1]: the logarithm of the sum over all ``vocabulary`` tokens. Sums run from the first
    candidate on, so that what stands behind a row's last changes nothing.
    """
    probability = (values - total).exp()
    top_k = torch.where(limits.top_k > 0, limits.top_k, vocabulary)
    beyond = torch.arange(values.shape[1], device=values.device) >= top_k
    probability = probability.masked_fill(beyond, 0.0)
    cumulative = probability.double().cumsum(-1)
    # Top-p is a share of what top-k left; without top-k that is 1, though not all of it is in the candidates.
    mass = torch.where(top_k < vocabulary, cumulative[:, -1:], 1.0)
    before = cumulative - probability
    keep = (before < limits.top_p * mass) & (probability >= limits.min_p * probability[:, :1])
    keep[:, 0] = True
    return probability.masked_fill(~keep, 0.0)


def _invert_cdf(probability: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index per row at which the sum of ``probability`` [n, k] passes ``uniform`` [n, 1] of its total."""
    cumulative = probability.double().cumsum(-1)
    target = uniform * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return index.clamp_(max=probability.shape[1] - 1)
