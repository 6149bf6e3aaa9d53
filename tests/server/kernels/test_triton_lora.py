"""The adapters' delta in Triton against the PyTorch one: compiled on a GPU, interpreted elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.kernels.inputs import BaseProducts, LoraInputs, ModuleShape, lora_inputs
from manylora.server.kernels.reference.lora import LoraDelta, LoraPlan
from manylora.server.kernels.reference.step import norm_shapes, target_shapes
from tests.support.kernel_cases import (
    CHANGES,
    MIXED_INPUTS,
    PAIRS,
    VECTORS,
    Mix,
    Pages,
    Shape,
    random_decoder,
    relative_error,
    rounding_slack,
)

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.lora import TritonLoraPlan, tiles_of
from manylora.server.kernels.cuda.mixes import total_rank

pytestmark = pytest.mark.slow

# The widths cross slices of both kinds (512 and 1,024 features), tiles of outputs, and are odd.
WEIGHTS = random_decoder(Shape(hidden=531, intermediate=1040, heads=3, kv_heads=1, head_dim=24, layers=1))
SHAPES = [*target_shapes(WEIGHTS), *norm_shapes(WEIGHTS)]
PAGES = Pages(WEIGHTS)
ONE = PAGES.random(1, 1)
FIVE = PAGES.random(5, 2)
SIXTEEN = PAGES.random(16, 3)
UNEVEN = PAGES.random((0, 17, 0, 33, 3, 0, 8), 4)
WIDE = PAGES.random(70, 5)
NONE = PAGES.random(0, 6)
SCALED = PAGES.random(4, 7, vectors=VECTORS)
PAIRED = PAGES.random((0, 4, 0, 0, 3, 0, 0), 10, vectors=PAIRS)
BLOCKS = PAGES.random((0, 4, 0, 0, 3, 0, 0), 11, vectors=MIXED_INPUTS)
WHOLE = PAGES.random((0, 4, 0, 0, 3, 0, 0), 9, vectors=CHANGES)
FULL = PAGES.random((531, 0, 3, 0, 0, 0, 600), 8)  # as kinds have whose changes are dense
POOL = PAGES.pool.float()
POOL[PAGES.used :] = float("nan")  # nothing there may be read
DECODE: tuple[Mix, ...] = (
    ((ONE, 1.0),),
    (),
    ((FIVE, 1.0), (SIXTEEN, -0.5)),
    ((NONE, 1.0),),
    ((UNEVEN, 0.25),),
    ((WIDE, 1.0), (UNEVEN, 2.0), (ONE, -1.0), (NONE, 1.0)),
    ((SIXTEEN, 0.0),),
)


class _Base(BaseProducts):
    """The base's products, for what input gains change."""

    def product(self, module: int, x: torch.Tensor) -> torch.Tensor:
        return x @ WEIGHTS.weight(module).to(x).T


def plan(
    kind: type[LoraPlan | TritonLoraPlan],
    mixes: Sequence[Mix],
    counts: Sequence[int],
    pool: torch.Tensor,
) -> LoraDelta:
    lora = lora_inputs(mixes)
    assert lora is not None
    return kind(pool, SHAPES, lora, np.cumsum([0, *counts]).astype(np.int32), _Base())


def io(module: ModuleShape, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, in], and y [rows, out] as a part of something wider."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, module.in_features, generator=generator)
    return x, torch.randn(rows, module.out_features + 7, generator=generator)


def applied(delta: LoraDelta, module: int, x: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """What becomes of ``wide``, the columns from the third on being the module's output."""
    wide = wide.clone()
    delta.add(module, x, wide[:, 3 : 3 + SHAPES[module].out_features])
    return wide.cpu()


def check(mixes: Sequence[Mix], counts: Sequence[int], device: torch.device, modules: Sequence[int]) -> None:
    ours = plan(TritonLoraPlan, mixes, counts, POOL.to(device))
    exact = plan(LoraPlan, mixes, counts, POOL)
    for module in modules:
        x, wide = io(SHAPES[module], sum(counts), seed=module)
        result = applied(ours, module, x.to(device), wide.to(device))
        torch.testing.assert_close(result, applied(exact, module, x, wide), atol=2e-4, rtol=2e-4)


def test_decode_rows(device: torch.device) -> None:
    check(DECODE, [1] * len(DECODE), device, range(7))


def test_prompts_of_every_length_and_mix(device: torch.device) -> None:
    check(DECODE, (17, 2, 16, 20, 33, 18, 1), device, (0, 3, 6))


@pytest.mark.sweep
def test_as_many_ranks_as_a_weight_has_rows(device: torch.device) -> None:
    mixes: tuple[Mix, ...] = (((FULL, 1.0),), ((FIVE, 1.0), (FULL, -0.5)), ())
    for counts in ((1, 1, 1), (17, 2, 1)):
        check(mixes, counts, device, (0, 6))


def test_vectors_come_before_the_pages(device: torch.device) -> None:
    check([((SCALED, 1.0),), ((SCALED, 0.5), (FIVE, 1.0)), ()], (1, 18, 2), device, (0, 3, 5))
    mixes: list[Mix] = [((WHOLE, 1.0),), ((SCALED, 0.5), (WHOLE, 0.3), (PAIRED, 0.5)), ((BLOCKS, 1.0),)]
    even = tuple(
        module for module in (0, 1, 6) if SHAPES[module].out_features % 2 == 0
    )  # partners are two and two
    check(mixes, (1, 18, 2), device, even)


@pytest.mark.parametrize("counts", [[1] * len(DECODE), [17] * len(DECODE)], ids=["rows", "tiles"])
def test_in_bf16_it_errs_no_more_than_pytorch(device: torch.device, counts: list[int]) -> None:
    pool = PAGES.pool
    for module in (0, 6):
        x, wide = (t.bfloat16() for t in io(SHAPES[module], sum(counts)))
        exact = applied(plan(LoraPlan, DECODE, counts, pool.float()), module, x.float(), wide.float())
        rounded = applied(plan(LoraPlan, DECODE, counts, pool), module, x, wide)
        ours = plan(TritonLoraPlan, DECODE, counts, pool.to(device))
        result = applied(ours, module, x.to(device), wide.to(device))
        assert relative_error(result, exact) < rounding_slack() * relative_error(rounded, exact)


def test_a_decode_row_has_the_same_bits_in_any_batch(device: torch.device) -> None:
    pool = POOL.to(device)
    x, wide = (t.to(device) for t in io(SHAPES[6], len(DECODE)))
    together = applied(plan(TritonLoraPlan, DECODE, [1] * len(DECODE), pool), 6, x, wide)
    assert torch.equal(together, applied(plan(TritonLoraPlan, DECODE, [1] * len(DECODE), pool), 6, x, wide))
    for i in (0, 2, 5):
        alone = plan(TritonLoraPlan, [DECODE[i]], [1], pool)
        assert torch.equal(applied(alone, 6, x[i : i + 1], wide[i : i + 1]), together[i : i + 1])


def test_rows_of_one_mix_have_the_bits_of_one_alone(device: torch.device) -> None:
    """However many they are: there is no other way for many."""
    pool = POOL.to(device)
    x, wide = (t.to(device) for t in io(SHAPES[6], 19))
    together = applied(plan(TritonLoraPlan, [DECODE[2]] * 19, [1] * 19, pool), 6, x, wide)
    for i in (0, 15, 18):
        alone = plan(TritonLoraPlan, [DECODE[2]], [1], pool)
        assert torch.equal(applied(alone, 6, x[i : i + 1], wide[i : i + 1]), together[i : i + 1])


MEMBERS = st.tuples(st.sampled_from([ONE, FIVE, UNEVEN, NONE]), st.sampled_from([1.0, -0.5, 3.0]))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(MEMBERS, max_size=3), st.sampled_from([1, 2, 16, 19])), min_size=1, max_size=5
    ),
    st.integers(0, 6),
)
def test_any_batch(batch: list[tuple[list[tuple[object, float]], int]], module: int) -> None:
    mixes = [tuple(mix) for mix, _ in batch]
    if any(mixes):
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check(mixes, [count for _, count in batch], here, [module])  # type: ignore[arg-type]


def test_the_bound_on_ranks_is_that_of_the_widest_mix() -> None:
    lora = lora_inputs(DECODE)
    assert isinstance(lora, LoraInputs)
    assert total_rank(lora) == 70 + 33 + 1 + 0


def test_tiles_cover_their_segments() -> None:
    assert tiles_of([(3, 36, 1), (40, 56, 2)]).tolist() == [[3, 19, 1], [19, 35, 1], [35, 36, 1], [40, 56, 2]]
