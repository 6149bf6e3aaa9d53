"""Log-probabilities and ranks that don't depend on the order in which a library sums and sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manylora.server.engine.sampling.sampler import EXACT, LIBRARY, logprobs_of
from manylora.server.kernels.cuda.fixed.drawing import draw
from manylora.server.kernels.reference import exact
from tests.support.draws import PARAMS, draws_of

KINDS = {
    "language": lambda g: torch.randn(40, 5003, generator=g) * 3,
    "flat": lambda g: torch.randn(40, 5003, generator=g) * 0.01,
    "few allowed": lambda g: torch.randn(40, 5003, generator=g).masked_fill(
        torch.arange(5003) > 3, -torch.inf
    ),
    "far apart": lambda g: torch.randn(40, 5003, generator=g) * 1e4,
}


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities(kind: str) -> None:
    logits = KINDS[kind](torch.Generator().manual_seed(1))
    found, expected = exact.log_softmax(logits), logits.double().log_softmax(-1)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-7)
    assert torch.equal(exact.log_softmax(logits[[7]]), found[[7]])
    assert torch.equal(exact.log_softmax(logits.flip(0)), found.flip(0))


def test_sums_don_t_depend_on_the_order() -> None:
    """Of the tokens: libraries sum them in pieces whose sizes may hang on the number of rows."""
    logits = KINDS["language"](torch.Generator().manual_seed(2))
    order = torch.randperm(5003, generator=torch.Generator().manual_seed(3))
    assert torch.equal(exact.log_softmax(logits[:, order]), exact.log_softmax(logits)[:, order])
    assert torch.equal(exact.weights_of(logits).sum(-1), exact.weights_of(logits)[:, order].sum(-1))
    swapped = logits[:, order].exp().sum(-1), logits.exp().sum(-1)
    assert not torch.equal(*swapped), "sums of float32 do"


def test_equal_ones_stand_in_the_order_of_their_ids_however_many_are_wanted() -> None:
    table = torch.zeros(2, 3000)
    table[1, 17] = 1.0
    for how in (3, 20):
        first, second = logprobs_of(table, [5, 6], how, EXACT)
        assert [token for token, _ in first.top] == list(range(how))
        assert [token for token, _ in second.top] == [17, *(t for t in range(how) if t != 17)][:how]
    (usual,) = logprobs_of(table[:1], [5], 0, LIBRARY)
    assert usual.logprob == pytest.approx(first.logprob)


def test_the_largest_sum_has_room() -> None:
    weights = exact.weights_of(torch.zeros(1, 1 << 18))
    total = weights.sum(-1, keepdim=True)
    assert total.item() == 2**62
    for share in (0.0, 0.5, 1 - 2.0**-53):
        found = exact.share_of(total, torch.tensor([[share]], dtype=torch.float64)).item()
        assert 0 <= found < 2**62
    tokens = draw(draws_of(torch.zeros(2, 1 << 18), [{}, {}], np.array([0.0, 1 - 2.0**-53])))
    assert tokens == [0, (1 << 18) - 1]


def test_a_row_is_drawn_alone_as_among_many() -> None:
    table = torch.randn(len(PARAMS) * 4, 5003, generator=torch.Generator().manual_seed(4))
    params, shares = list(PARAMS) * 4, np.random.default_rng(5).random(len(PARAMS) * 4)
    together = draw(draws_of(table, params, shares))
    for row in range(len(table)):
        assert draw(draws_of(table[[row]], [params[row]], shares[[row]])) == [together[row]]
