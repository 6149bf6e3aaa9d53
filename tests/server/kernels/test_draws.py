"""Drawing tokens, by PyTorch and by each level of the native kernels, against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.cpu.sampling import NativeDraw
from manylora.server.kernels.cuda import drawing
from manylora.server.kernels.cuda.fixed import drawing as fixed_drawing
from manylora.server.kernels.draws import Draw, Draws
from manylora.server.kernels.reference import sampling
from tests.support.draws import PARAMS, draws_of
from tests.support.kernel_cases import library_of

TOLERANCE = 1e-5  # of shares: float32 weights, summed
WIDTHS = (1, 2, 17, 255, 256, 257, 5000, 49_153)

Logits = Callable[[torch.Generator, int], torch.Tensor]
KINDS: dict[str, Logits] = {
    "language": lambda g, n: torch.randn(n, generator=g) * 3 + 12 * torch.rand(n, generator=g) ** 60,
    "flat": lambda g, n: torch.randn(n, generator=g) * 0.3,
    "all equal": lambda _, n: torch.full((n,), 1.25),
    "many equal": lambda g, n: (torch.randn(n, generator=g) * 8).round() / 4,
    "nearly equal": lambda g, n: 20 + torch.randint(0, 5, (n,), generator=g) * 2e-6,
    "two heaps": lambda g, n: (
        torch.where(torch.rand(n, generator=g) < 0.5, 5.0, 3.0) + torch.arange(n) * 1e-6
    ),
    "one far off": lambda g, n: torch.randn(n, generator=g).index_fill(0, torch.tensor(n // 2), 1e6),
    "few allowed": lambda g, n: torch.randn(n, generator=g).masked_fill(torch.arange(n) > 2, -torch.inf),
}
EXTREMES: dict[str, Logits] = {  # where the reference, which divides in float32, is not exact
    "huge": lambda g, n: torch.randn(n, generator=g) * 1e30,
    "around zero": lambda g, n: torch.randn(n, generator=g) * 1e-20,
}


def check(draws: Draws, row: int, token: int) -> None:
    """Assert that this is the token at the row's share, or one whose border is as close as rounding."""
    logits = draws.logits[row].double().numpy()
    order = np.argsort(-logits, kind="stable")
    if draws.temperature[row] == 0:
        assert token == order[0]
        return
    weights = np.exp((logits - logits.max()) / float(draws.temperature[row]))
    assert weights[token] > 0
    limited = 0 < draws.top_k[row] < len(logits)
    cut = limited or draws.top_p[row] < 1 or draws.min_p[row] > 0
    kept = order[: draws.top_k[row]] if limited else order if cut else np.arange(len(logits))
    passed = weights[kept].cumsum()
    before = passed - weights[kept]
    slack = TOLERANCE * passed[-1]
    inside = np.ones(len(kept), bool)
    if cut:
        inside = before < draws.top_p[row] * passed[-1] + slack
        inside &= weights[kept] >= float(draws.min_p[row]) * (1 - TOLERANCE)
        inside[0] = True
    (place,) = np.flatnonzero(kept == token)
    assert inside[place], f"{token} is cut off"
    sure = before < draws.top_p[row] * passed[-1] - slack if cut else inside
    sure &= weights[kept] > float(draws.min_p[row]) * (1 + TOLERANCE)
    least = draws.uniform[row] * max(passed[sure][-1] if sure.any() else 0.0, weights[kept[0]])
    most = draws.uniform[row] * passed[inside][-1]
    assert before[place] <= most + slack
    assert passed[place] >= least - slack


@pytest.fixture(scope="module", params=[variant.name for variant in usable_variants()])
def native_draw(request: pytest.FixtureRequest) -> Draw:
    return _native(request.param)


@pytest.fixture(
    scope="module",
    params=["pytorch", "device", "deterministic", *(variant.name for variant in usable_variants())],
)
def draw(request: pytest.FixtureRequest) -> Draw:
    others = {"pytorch": sampling.draw, "device": drawing.draw, "deterministic": fixed_drawing.draw}
    return others[request.param] if request.param in others else _native(request.param)


def _native(level: str) -> Draw:
    return NativeDraw(library_of(next(v for v in usable_variants() if v.name == level)).native, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_share_gets_its_token(draw: Draw, kind: str, width: int) -> None:
    check_shares(draw, KINDS[kind], width)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_share_gets_its_token_of_extreme_logits(native_draw: Draw, kind: str, width: int) -> None:
    check_shares(native_draw, EXTREMES[kind], width)


def check_shares(draw: Draw, kind: Logits, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    table = torch.stack([kind(generator, width) for _ in PARAMS])
    shares = np.random.default_rng(width).random(len(PARAMS))
    shares[:2] = 0.0
    shares[-2:] = 1 - 2.0**-53
    for turn in range(1 if width > 10_000 else 3):
        draws = draws_of(table, list(PARAMS), np.roll(shares, 5 * turn))
        for row, token in enumerate(draw(draws)):
            check(draws, row, token)


@pytest.mark.slow
@pytest.mark.parametrize("width", [300, 20_000])
def test_native_and_reference_draw_the_same(draw: Draw, width: int) -> None:
    rows = 20 * len(PARAMS)
    table = KINDS["language"](torch.Generator().manual_seed(1), rows * width).view(rows, width)
    draws = draws_of(table, list(PARAMS) * 20, np.random.default_rng(2).random(rows))
    same = np.equal(draw(draws), sampling.draw(draws))
    assert same.mean() > 0.99


def test_a_row_is_drawn_by_itself(draw: Draw) -> None:
    """Alone, beside others in any order, of a larger table, and given in another row's place."""
    width = 3000
    table = KINDS["flat"](torch.Generator().manual_seed(3), len(PARAMS) * width).view(-1, width)
    shares = np.random.default_rng(4).random(len(PARAMS))
    together = draw(draws_of(table, list(PARAMS), shares))
    assert draw(draws_of(table.flip(0), list(PARAMS)[::-1], shares[::-1].copy())) == together[::-1]
    wide = torch.nn.functional.pad(table, (0, 40), value=99.0)
    assert draw(draws_of(wide[:, :width], list(PARAMS), shares)) == together
    other = torch.zeros_like(table)
    replaced = dict(enumerate(table))
    assert draw(draws_of(other, list(PARAMS), shares, replaced=replaced)) == together
    assert not other.any()
    for row, params in enumerate(PARAMS):
        alone = draws_of(table[row : row + 1], [params], shares[row : row + 1])
        assert draw(alone) == together[row : row + 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_rows_that_are_no_distribution_give_some_token(draw: Draw, bad: float, share: float) -> None:
    width = 300  # not whole pieces
    table = torch.randn(len(PARAMS), width, generator=torch.Generator().manual_seed(5))
    table[torch.rand(table.shape, generator=torch.Generator().manual_seed(6)) < share] = bad
    tokens = draw(draws_of(table, list(PARAMS), np.full(len(PARAMS), 0.7)))
    assert all(0 <= token < width for token in tokens)


@pytest.mark.parametrize("width", [5, 300, 1024, 5000])
def test_tokens_left_out_are_drawn_as_if_their_logits_were_minus_infinity(draw: Draw, width: int) -> None:
    """To the token, wherever the bits lie; rows without bits draw what they draw without others' bits."""
    rows, random = len(PARAMS), np.random.default_rng(width)
    table = KINDS["flat"](torch.Generator().manual_seed(7), rows * width).view(rows, width)
    shares = random.random(rows)
    free = draw(draws_of(table, list(PARAMS), shares))
    for kept in (0.002, 0.5, 0.999):
        flags = random.random((rows, width)) < kept
        flags[:, : width // 2 // 256 * 256] = random.random() < 0.5  # whole pieces with all, or none
        flags[np.arange(rows), random.integers(0, width, rows)] = True
        bits = {row: packed(flags[row], spare=row % 3) for row in range(0, rows, 2)}
        masked = table.masked_fill(torch.from_numpy(~flags), -torch.inf)
        expected = draw(draws_of(masked, list(PARAMS), shares))
        before = table.clone()
        tokens = draw(draws_of(table, list(PARAMS), shares, allowed=bits))
        assert tokens[::2] == expected[::2]
        assert tokens[1::2] == free[1::2]
        assert torch.equal(table, before)
        replaced = dict(enumerate(table))
        zeros = torch.zeros_like(table)
        assert draw(draws_of(zeros, list(PARAMS), shares, replaced=replaced, allowed=bits)) == tokens


def test_bits_are_read_anew_at_every_draw(draw: Draw) -> None:
    table = torch.zeros(1, 40)
    words = packed(np.arange(40) == 3)
    draws = draws_of(table, [{"temperature": 0.0}], np.zeros(1), allowed={0: words})
    assert draw(draws) == [3]
    words[:] = packed(np.arange(40) == 35)
    assert draw(draws) == [35]


def packed(flags: np.ndarray, spare: int = 0) -> np.ndarray:
    """Words of bits, with ``spare`` words more of bits that belong to no token, all set."""
    whole = np.concatenate([flags, np.ones(-len(flags) % 32 + 32 * spare, bool)])
    return np.packbits(whole, bitorder="little").view(np.int32)
