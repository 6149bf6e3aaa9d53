"""Paged decode attention in Triton against the PyTorch one: compiled on a GPU, interpreted elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.attention import PagedKV, Scoring, plan_attention
from tests.support.kernel_cases import Batcher, relative_error, rounding_slack

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.attention import DecodeRows, decode_rows

CONTEXTS = (1, 15, 16, 17, 32, 33, 127, 128, 129, 300)  # around blocks, tiles and partitions
BLOCKS = 80


def step(contexts: Sequence[int], chunk: int | None = None) -> StepInputs:
    """One row at the end of each context; ``chunk`` rows of the last."""
    batcher = Batcher(BLOCKS, vocab=10, first=1)
    work = []
    for i, context in enumerate(contexts):
        sequence, count = batcher.sequence(context), 1
        if chunk is not None and i == len(contexts) - 1:
            count = chunk
        sequence.done = context - count
        work.append((sequence, count))
    return Batcher.step(work)


def cache_and_queries(
    inputs: StepInputs, heads: int, kv_heads: int, key_dim: int, value_dim: int | None = None
) -> tuple[PagedKV, torch.Tensor]:
    """A cache that holds numbers in block 0 and where the sequences have tokens, else NaN; and queries."""
    generator = torch.Generator().manual_seed(1)
    kv = PagedKV(BLOCKS, kv_heads, key_dim, value_dim or key_dim, torch.empty(0))
    for cache in (kv.keys, kv.values):
        cache[BLOCK_SIZE:] = float("nan")
        for context, blocks in zip(inputs.context, inputs.block_tables, strict=True):
            for position in range(context):
                slot = blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
                cache[slot] = torch.randn(cache.shape[1:], generator=generator)
    return kv, torch.randn(len(inputs.token_ids), heads, key_dim, generator=generator)


def moved(kv: PagedKV, to: torch.device | torch.dtype) -> PagedKV:
    copy = object.__new__(PagedKV)
    copy.keys, copy.values = kv.keys.to(to), kv.values.to(to)
    return copy


def ours(
    inputs: StepInputs, kv: PagedKV, query: torch.Tensor, device: torch.device, scoring: Scoring
) -> torch.Tensor:
    plan = plan_attention(inputs, device, decode_rows)
    return plan.attend(moved(kv, device), query.to(device), scoring).cpu()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_dim", "value_dim"),
    [(2, 2, 32, None), (9, 3, 64, None), (8, 1, 128, None), (4, 2, 24, 40), (34, 2, 16, None)],
    ids=["one head a group", "three", "eight", "odd widths", "more than a tile"],
)
def test_every_grouping(
    device: torch.device, heads: int, kv_heads: int, key_dim: int, value_dim: int | None
) -> None:
    inputs = step((5, 130, 48))
    kv, query = cache_and_queries(inputs, heads, kv_heads, key_dim, value_dim)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.2))
    torch.testing.assert_close(ours(inputs, kv, query, device, Scoring(0.2)), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 1}, {"window": 40}, {"window": 128}, {"softcap": 1.5}, {"window": 150, "softcap": 2.0}],
    ids=str,
)
def test_contexts_windows_and_caps(device: torch.device, options: dict[str, Any]) -> None:
    inputs = step(CONTEXTS)
    kv, query = cache_and_queries(inputs, heads=2, kv_heads=1, key_dim=16)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.7, **options))
    result = ours(inputs, kv, query, device, Scoring(0.7, **options))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)


def test_beside_a_chunk_of_a_prompt(device: torch.device) -> None:
    inputs = step((20, 33, 50), chunk=9)
    kv, query = cache_and_queries(inputs, heads=4, kv_heads=2, key_dim=16)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.3))
    torch.testing.assert_close(ours(inputs, kv, query, device, Scoring(0.3)), expected, atol=2e-5, rtol=1e-4)


def test_in_bf16_it_errs_no_more_than_pytorch(device: torch.device) -> None:
    inputs = step((5, 130, 48, 200))
    kv, query = cache_and_queries(inputs, heads=6, kv_heads=2, key_dim=64)
    kv, query = moved(kv, torch.bfloat16), query.bfloat16()
    reference = plan_attention(inputs, torch.device("cpu"))
    exact = reference.attend(moved(kv, torch.float32), query.float(), Scoring(0.2))
    rounded = reference.attend(kv, query, Scoring(0.2))
    result = ours(inputs, kv, query, device, Scoring(0.2))
    assert relative_error(result, exact) < rounding_slack() * relative_error(rounded, exact)


def test_a_row_has_the_same_bits_in_any_batch(device: torch.device) -> None:
    inputs = step((5, 130, 290))
    kv, query = cache_and_queries(inputs, heads=3, kv_heads=1, key_dim=16)
    together = ours(inputs, kv, query, device, Scoring(0.2))
    rows = decode_rows(inputs, torch.arange(3).numpy(), device)
    longer = replace(rows, partitions=16)  # as in a bucket for longer contexts
    out = torch.empty_like(together, device=device)
    longer.attend(moved(kv, device), query.to(device), out, Scoring(0.2))
    assert torch.equal(out.cpu(), together)
    alone = DecodeRows(rows.rows[:1], rows.context[1:2], rows.blocks[1:2], partitions=2)
    out = torch.empty_like(together[:1], device=device)
    alone.attend(moved(kv, device), query[1:2].to(device), out, Scoring(0.2))
    assert torch.equal(out.cpu(), together[1:2])


def test_padding_becomes_zeros(device: torch.device) -> None:
    inputs = step((5, 130))
    kv, query = cache_and_queries(inputs, heads=3, kv_heads=1, key_dim=16)
    rows = decode_rows(inputs, torch.arange(2).numpy(), device)
    out = torch.full_like(query, float("nan")).to(device)
    padded = replace(rows, context=rows.context * torch.tensor([1, 0], dtype=torch.int32, device=device))
    padded.attend(moved(kv, device), query.to(device), out, Scoring(0.2))
    assert out[0].isfinite().all()
    assert (out[1] == 0).all()
