"""Do Triton's kernels compile and run on this device? Asked before a model is given to them."""

from __future__ import annotations

import torch

from manylora.server.kernels.cuda.attention import DecodeRows
from manylora.server.kernels.cuda.lora import LoraTables, RankPages
from manylora.server.kernels.inputs import BLOCK_SIZE, ModuleShape
from manylora.server.kernels.reference.attention import PagedKV, Scoring
from manylora.server.kernels.weights import DecoderWeights

_WIDTH = 64
_RANK = 3


@torch.inference_mode()
def trial(weights: DecoderWeights) -> None:
    """Run every kernel once on a few zeros, in the number format and with the heads of ``weights``.

    Raises:
        Exception: whatever Triton, its compilers or the driver raise.
    """
    like = weights.embedding
    _try_adapters(like)
    _try_attention(weights)
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)


def _try_adapters(like: torch.Tensor) -> None:
    def table(values: object, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=like.device)

    one = torch.ones(1, device=like.device)
    mix = LoraTables(table([0, 1]), table([0]), one, table([[0]], torch.int64), table([[_RANK]]))
    pages = RankPages(
        like.new_zeros(2 * _RANK * _WIDTH), [ModuleShape(_WIDTH, _WIDTH)], mix, _RANK,
        rows=table([[0, 0]]), tiles=table([[1, 18, 0]]),
    )  # fmt: skip
    pages.add(0, like.new_zeros(18, _WIDTH), like.new_zeros(18, _WIDTH))


def _try_attention(weights: DecoderWeights) -> None:
    like = weights.embedding
    kv = PagedKV(1, weights.n_kv_heads, weights.head_dim, weights.head_dim, like)
    row = torch.zeros(1, dtype=torch.int32, device=like.device)
    query = like.new_zeros(1, weights.n_heads, weights.head_dim)
    rows = DecodeRows(row, row + BLOCK_SIZE, row[None], partitions=1)
    rows.attend(kv, query, torch.empty_like(query), Scoring(weights.scale))
