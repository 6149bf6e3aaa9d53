"""Rank pages: the room they take, how they are laid out, and that nothing of a former owner shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.kernels.inputs import PAGE_ALIGN, page_length
from manylora.server.model.pages.pool import PackedAdapter, PagePool
from manylora.server.model.pages.space import PageSpace

MODULES = (TargetModule("q", 40, 64), TargetModule("v", 40, 24), TargetModule("down", 100, 40))
CPU = torch.device("cpu")


def weights(ranks: dict[str, int], *, seed: int = 0, scaling: float = 0.5) -> dict[str, ModuleDelta]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {m.name: m for m in MODULES}
    return {
        name: ModuleDelta(
            torch.randn(rank, sizes[name].in_features, generator=generator),
            torch.randn(sizes[name].out_features, rank, generator=generator),
            scaling,
        )
        for name, rank in ranks.items()
    }


def pool(capacity: int = 1 << 18, dtype: torch.dtype = torch.float32) -> PagePool:
    return PagePool(MODULES, capacity, dtype, CPU)


def unpacked(made: PagePool, packed: PackedAdapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read A and scaled B back out of the pool, after writing ``packed`` into it."""
    pages = made.reserve(packed)
    assert pages is not None
    made.write(pages, packed)
    result = {}
    for m, module in enumerate(MODULES):
        rank, offset = int(pages.rank[m]), int(pages.offset[m])
        if not rank:
            assert offset == 0, "an absent module points at the zero page"
            continue
        a_length, b_length = page_length(module.in_features), page_length(module.out_features)
        a = made.data[offset : offset + rank * a_length].view(rank, a_length)
        start = offset + rank * a_length
        b = made.data[start : start + rank * b_length].view(rank, b_length)
        assert not a[:, module.in_features :].any()
        assert not b[:, module.out_features :].any()
        result[module.name] = (a[:, : module.in_features], b[:, : module.out_features].T)
    return result


@pytest.mark.parametrize(("features", "length"), [(1, 32), (32, 32), (33, 64), (576, 576), (1536, 1536)])
def test_page_length(features: int, length: int) -> None:
    assert page_length(features) == length


@pytest.mark.parametrize("ranks", [{"q": 1}, {"q": 8, "v": 8}, {"q": 4, "v": 64, "down": 3}, {"down": 16}])
def test_packing_and_reading_back(ranks: dict[str, int]) -> None:
    made, given = pool(), weights(ranks)
    found = unpacked(made, made.pack("d", given))
    assert found.keys() == given.keys()
    for name, lora in given.items():
        assert torch.equal(found[name][0], lora.a)
        assert torch.equal(found[name][1], lora.b * lora.scaling)


def test_scaling_is_folded_in_before_the_one_rounding() -> None:
    made = pool(dtype=torch.bfloat16)
    given = weights({"q": 8}, scaling=1 / 3)
    (_, b) = unpacked(made, made.pack("d", given))["q"]
    assert torch.equal(b, (given["q"].b * (1 / 3)).bfloat16())


def test_an_adapter_takes_its_pages_and_no_more() -> None:
    made = pool()
    packed = made.pack("d", weights({"q": 4, "down": 7}))
    assert packed.data.numel() == 4 * (64 + 64) + 7 * (128 + 64)
    assert packed.data.numel() % PAGE_ALIGN == 0


def test_the_zero_page_is_as_wide_as_the_widest_module_and_stays_zero() -> None:
    made = pool(capacity=4096 * 4)
    for seed in range(40):
        pages = made.reserve(packed := made.pack("d", weights({"q": 4, "down": 2}, seed=seed)))
        if pages is None:
            break
        assert pages.start >= page_length(100)
        made.write(pages, packed)
    assert not made.data[: page_length(100)].any()


def test_a_small_adapter_in_the_memory_of_a_large_one() -> None:
    """Leftover rows of the former owner must not be the new one's modules."""
    made = pool()
    large = made.pack("large", weights({"q": 8, "v": 8, "down": 8}, seed=1))
    pages = made.reserve(large)
    assert pages is not None
    made.write(pages, large)
    made.release(pages)
    small = weights({"q": 4, "v": 2}, seed=2)
    found = unpacked(made, made.pack("small", small))
    assert found.keys() == {"q", "v"}
    for name, lora in small.items():
        assert torch.equal(found[name][0], lora.a)
        assert torch.equal(found[name][1], lora.b * lora.scaling)


def test_bytes_return_to_the_start() -> None:
    made = pool()
    assert made.used_bytes == 0
    packed = made.pack("d", weights({"q": 8, "down": 8}))
    pages = [made.reserve(packed) for _ in range(5)]
    assert made.used_bytes == 5 * packed.data.numel() * 4
    for one in pages:
        assert one is not None
        assert made.release(one) == packed.data.numel() * 4
    assert made.used_bytes == 0
    made.check()


def test_a_pool_too_small_for_anything() -> None:
    made = pool(capacity=1)
    assert made.capacity_bytes == 0
    assert made.reserve(made.pack("d", weights({"q": 1}))) is None


def test_no_modules_at_all() -> None:
    made = PagePool((), 1024, torch.float32, CPU)
    packed = made.pack("d", {})
    assert packed.data.numel() == 0
    assert np.array_equal(packed.rank, np.zeros(0))


class Space(RuleBasedStateMachine):
    """Runs are taken and given back in any order: they never overlap and no room is lost."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.space = PageSpace(10, 110)
        self.taken: dict[int, int] = {}

    @rule(target=runs, size=st.integers(1, 60))
    def reserve(self, size: int) -> object:
        start = self.space.reserve(size)
        if start is None:
            assert self._largest_gap() < size, "there was room"
            return multiple()
        assert 10 <= start <= 110 - size
        assert all(start + size <= s or s + n <= start for s, n in self.taken.items()), "runs overlap"
        self.taken[start] = size
        return start

    @rule(start=consumes(runs))
    def release(self, start: int) -> None:
        assert self.space.release(start) == self.taken.pop(start)

    @invariant()
    def balanced(self) -> None:
        self.space.check()
        assert self.space.used == sum(self.taken.values())

    def _largest_gap(self) -> int:
        edges = [10, *(x for s, n in sorted(self.taken.items()) for x in (s, s + n)), 110]
        return max((b - a for a, b in zip(edges[::2], edges[1::2], strict=True)), default=math.inf)  # type: ignore[return-value]


Space.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSpace = Space.TestCase
