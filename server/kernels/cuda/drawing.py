"""Drawing tokens on a device that nobody waits for until the tokens are there.

The reference looks at its numbers on the host to say which rows need what. Here every row that is cut is
sorted as far as CANDIDATES tokens go, and a row for which that is not enough says so beside its token: such
rows, whose distribution is flat, are drawn by the reference afterwards. Everything that a step's rows need is
sent in one copy, and comes back in one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.reference import sampling
from manylora.server.kernels.reference.exact import likeliest
from manylora.server.kernels.reference.sampling import Limits, draw_whole, pick, table_of, truncate

CANDIDATES = 1024  # the likeliest tokens, among which those of a row are cut


@torch.inference_mode()
def draw(draws: Draws) -> list[int]:
    """Draw one token per row as :class:`Draws` defines it."""
    table = table_of(draws)
    rows = Rows.of(draws, table)
    tokens = table.argmax(-1)
    enough = torch.ones_like(tokens)
    if rows.whole is not None:
        tokens[rows.whole] = draw_whole(rows.scaled(table, rows.whole), rows.uniform[rows.whole])
    if rows.cut is not None:
        tokens[rows.cut], enough[rows.cut] = _draw_cut(table, rows, rows.cut)
    drawn, complete = torch.stack([tokens, enough]).tolist()  # the one time that the host waits
    again = [row for row, known in enumerate(complete) if not known]
    if again:
        for row, token in zip(again, sampling.draw(_some(draws, table, again)), strict=True):
            drawn[row] = token
    return drawn  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Rows:
    """The parameters of all rows on the device, and which rows are drawn how; the others are greedy."""

    temperature: torch.Tensor  # [n, 1] float64, as what follows
    uniform: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    whole: torch.Tensor | None  # [w] int64; None: no row is
    cut: torch.Tensor | None  # [c] int64

    @classmethod
    def of(cls, draws: Draws, table: torch.Tensor) -> Rows:
        drawn = draws.temperature > 0
        limited = (draws.top_k > 0) & (draws.top_k < table.shape[1])
        cut = drawn & (limited | (draws.top_p < 1) | (draws.min_p > 0))
        top_k = np.where(limited, draws.top_k, 0)
        columns: list[np.ndarray[Any, Any]] = [
            draws.temperature, draws.uniform, top_k, draws.top_p, draws.min_p,
        ]  # fmt: skip
        order = np.concatenate([np.flatnonzero(drawn & ~cut), np.flatnonzero(cut)])
        there = sent(np.concatenate([*(c.astype(np.float64) for c in columns), order]), table.device)
        n, whole = len(drawn), int((drawn & ~cut).sum())
        places = there[5 * n :].long()
        temperature, uniform, k, p, least = there[: 5 * n].view(5, n, 1)
        return cls(
            temperature,
            uniform,
            k,
            p,
            least,
            whole=places[:whole] if whole else None,
            cut=places[whole:] if len(places) > whole else None,
        )

    def scaled(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The logits of ``rows`` [m] over their temperatures [m, V] float32, a copy."""
        return table[rows] / self.temperature[rows].float()

    def limits(self, rows: torch.Tensor) -> Limits:
        return Limits(self.top_k[rows].long(), self.top_p[rows], self.min_p[rows].float())


def _draw_cut(table: torch.Tensor, rows: Rows, cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [c] of the rows ``cut``, and whether the candidates were enough for them [c] int64."""
    scaled, limits = rows.scaled(table, cut), rows.limits(cut)
    vocabulary = scaled.shape[1]
    values, order = likeliest(scaled, min(CANDIDATES, vocabulary))
    kept = truncate(values, scaled.logsumexp(-1, keepdim=True), vocabulary, limits)
    tokens = pick(kept, order, rows.uniform[cut])
    enough = (kept[:, -1] <= 0) & (limits.top_k[:, 0] <= values.shape[1])
    return tokens, (enough | (values.shape[1] == vocabulary)).long()


def _some(draws: Draws, table: torch.Tensor, rows: list[int]) -> Draws:
    """The draws of some rows."""
    return replace(
        draws,
        logits=table[rows],
        temperature=draws.temperature[rows],
        top_k=draws.top_k[rows],
        top_p=draws.top_p[rows],
        min_p=draws.min_p[rows],
        uniform=draws.uniform[rows],
        replaced={},
        allowed={},
    )
