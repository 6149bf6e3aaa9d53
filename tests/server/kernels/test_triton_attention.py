"""Paged attention in Triton against the PyTorch one: compiled on a GPU, interpreted elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.attention import PagedKV, Scoring, plan_attention
from tests.support.kernel_cases import Batcher, relative_error, rounding_slack

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda import attention, prompts
from manylora.server.kernels.cuda.attention import (
    MOST_PARTITIONS,
    PARTITION,
    DecodeRows,
    decode_rows,
    scratch_bytes,
    together,
)
from manylora.server.kernels.cuda.prompts import Chunks, tiles_for
from manylora.server.kernels.cuda.types import tile_of

CONTEXTS = (1, 15, 16, 17, 32, 33, 127, 128, 129, 300)  # around blocks, tiles and partitions
BLOCKS = 80


def step(contexts: Sequence[int], *chunks: int) -> StepInputs:
    """One row at the end of each context; ``chunks`` rows of the last ones."""
    counts = [*[1] * (len(contexts) - len(chunks)), *chunks]
    batcher = Batcher(BLOCKS, vocab=10, first=1)
    work = []
    for i, context in enumerate(contexts):
        sequence, count = batcher.sequence(context), counts[i]
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
    plan = attention.plan_attention(inputs, device)
    return plan.attend(moved(kv, device), query.to(device), scoring).cpu()


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 1}, {"window": 40}, {"window": 128}, {"softcap": 1.5}, {"window": 150, "softcap": 2.0}],
    ids=str,
)
@pytest.mark.parametrize("width", [16, 128])
def test_contexts_windows_and_caps(device: torch.device, options: dict[str, Any], width: int) -> None:
    """In float32 heads of 128 are so wide that fewer tokens are taken at once."""
    assert together(width * 4, cores=False) == (32 if width == 16 else 16)
    inputs = step(CONTEXTS)
    kv, query = cache_and_queries(inputs, heads=2, kv_heads=1, key_dim=width)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.7, **options))
    result = ours(inputs, kv, query, device, Scoring(0.7, **options))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)


def test_beside_a_chunk_of_a_prompt(device: torch.device) -> None:
    inputs = step((20, 33, 50), 9)
    kv, query = cache_and_queries(inputs, heads=4, kv_heads=2, key_dim=16)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.3))
    torch.testing.assert_close(ours(inputs, kv, query, device, Scoring(0.3)), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_in_bf16_it_errs_no_more_than_pytorch(device: torch.device) -> None:
    inputs = step((5, 130, 48, 200))
    kv, query = cache_and_queries(inputs, heads=6, kv_heads=2, key_dim=64)
    kv, query = moved(kv, torch.bfloat16), query.bfloat16()
    reference = plan_attention(inputs, torch.device("cpu"))
    exact = reference.attend(moved(kv, torch.float32), query.float(), Scoring(0.2))
    rounded = reference.attend(kv, query, Scoring(0.2))
    result = ours(inputs, kv, query, device, Scoring(0.2))
    assert relative_error(result, exact) < rounding_slack() * relative_error(rounded, exact)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_dim", "value_dim"),
    [(6, 2, 32, None), (2, 1, 24, 40), (34, 1, 16, None)],
    ids=["three heads a group", "odd widths", "more heads than a tile has rows"],
)
def test_prompts_of_every_grouping(
    device: torch.device, heads: int, kv_heads: int, key_dim: int, value_dim: int | None
) -> None:
    """Whole prompts and chunks of longer ones, beside a row that decodes."""
    inputs = step((50, 100, 20, 7), 40, 20, 2)
    kv, query = cache_and_queries(inputs, heads, kv_heads, key_dim, value_dim)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.2))
    torch.testing.assert_close(ours(inputs, kv, query, device, Scoring(0.2)), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"window": 1}, {"window": 40}, {"window": 128}, {"softcap": 1.5}, {"window": 70, "softcap": 2.0}],
    ids=str,
)
def test_prompts_through_windows_and_caps(device: torch.device, options: dict[str, Any]) -> None:
    inputs = step((120, 33), 50, 33)
    kv, query = cache_and_queries(inputs, heads=3, kv_heads=1, key_dim=16)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.7, **options))
    result = ours(inputs, kv, query, device, Scoring(0.7, **options))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 40])
def test_a_row_of_a_prompt_has_the_same_bits_in_any_chunk(device: torch.device, window: int | None) -> None:
    inputs = step((70,), 70)
    kv, query = cache_and_queries(inputs, heads=3, kv_heads=1, key_dim=16)
    whole = ours(inputs, kv, query, device, Scoring(0.2, window))
    for first, last in ((0, 31), (31, 70)):
        chunk = replace(
            inputs, query_start=np.array([0, last - first], np.int32), context=np.array([last], np.int32)
        )
        part = ours(chunk, kv, query[first:last], device, Scoring(0.2, window))
        assert torch.equal(part, whole[first:last])


@pytest.mark.slow
def test_prompts_in_bf16_err_no_more_than_pytorch(device: torch.device) -> None:
    inputs = step((70, 48), 70, 30)
    kv, query = cache_and_queries(inputs, heads=6, kv_heads=2, key_dim=64)
    kv, query = moved(kv, torch.bfloat16), query.bfloat16()
    reference = plan_attention(inputs, torch.device("cpu"))
    exact = reference.attend(moved(kv, torch.float32), query.float(), Scoring(0.2))
    rounded = reference.attend(kv, query, Scoring(0.2))
    result = ours(inputs, kv, query, device, Scoring(0.2))
    assert relative_error(result, exact) < rounding_slack() * relative_error(rounded, exact)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 700])
def test_contexts_longer_than_the_smallest_partitions_reach(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Partitions grow then; a row has the bits that it has beside a longer one."""
    monkeypatch.setattr(attention, "MOST_PARTITIONS", 4)
    inputs = step((1100, 100))
    kv, query = cache_and_queries(inputs, heads=2, kv_heads=1, key_dim=16)
    expected = plan_attention(inputs, torch.device("cpu")).attend(kv, query, Scoring(0.3, window))
    result = ours(inputs, kv, query, device, Scoring(0.3, window))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)
    alone = decode_rows(inputs, torch.arange(1, 2).numpy(), device)
    out = torch.empty_like(result, device=device)
    alone.attend(moved(kv, device), query.to(device), out, Scoring(0.3, window))
    assert torch.equal(out[1].cpu(), result[1])


class Allocated(TorchDispatchMode):
    """Counts the bytes of new tensors; kernels allocate nothing and do not run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" in str(func):
            self.bytes += result.nbytes
        else:
            assert result.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr(), func
        return result


class NotLaunched:
    """A kernel that does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **__: None


def test_the_memory_that_attention_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its output nothing for prompts, and for rows that decode a bound that contexts do not raise."""
    monkeypatch.setattr(attention, "attend_partition", NotLaunched())
    monkeypatch.setattr(attention, "join_partitions", NotLaunched())
    monkeypatch.setattr(prompts, "attend_chunks", NotLaunched())
    kv, scoring = PagedKV(1, 2, 64, 64, torch.empty(0)), Scoring(1.0)
    query = torch.empty(3000, 8, 64)
    out = torch.empty_like(query)
    work = torch.zeros(2, 4, dtype=torch.int32)
    tables = torch.zeros(2 * 8192, dtype=torch.int32)
    with Allocated() as prompt:
        Chunks(work, tables, rows=3000).attend(kv, query, out, scoring)
    assert prompt.bytes == 0
    rows = torch.zeros(3000, dtype=torch.int32)
    taken = []
    for context in (100, 1000, 10_000, 1_000_000):
        blocks = torch.zeros(1, 1, dtype=torch.int32).expand(3000, -(-context // BLOCK_SIZE))
        with Allocated() as decode:
            DecodeRows(rows, rows, blocks, -(-context // PARTITION)).attend(kv, query, out, scoring)
        taken.append(decode.bytes)
        assert decode.bytes == scratch_bytes(3000, context, 8, 64)
    assert taken[0] < taken[1] < taken[2] == taken[3] == 3000 * 8 * MOST_PARTITIONS * 66 * 4


@pytest.mark.parametrize("shared", [64, 99, 163, 227])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("width", [64, 80, 128, 192, 256, 576])
@pytest.mark.parametrize("group", [1, 7, 71])
def test_tiles_fit_the_memory_they_share(shared: int, size: int, width: int, group: int) -> None:
    tile = tile_of(width)
    tiles = tiles_for(shared * 1024, group, (tile, tile), size, size == 2)
    assert tiles.rows >= group
    if width <= 256 and group <= 64:
        ahead = tiles.stages * tiles.tokens * 2 * tile
        assert (tiles.rows * (tile + tiles.tokens) + ahead) * size <= shared * 1024
