"""The sampler: every parameter at its edges, the drawn distribution, and independence of neighbours."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.engine.sampling.sampler import SampledRows, logprobs_of, sample
from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.draws import Draw
from tests.support.sequences import make_sequence

END = frozenset({3})
LOGITS = torch.tensor([1.0, 4.0, 2.0, 3.5, -1.0, 0.5])
PROMPT = (0, 1)


def drawn(
    draw: Draw, logits: torch.Tensor, count: int = 300, *, prompt: tuple[int, ...] = PROMPT, **params: Any
) -> set[int]:
    """The tokens that ``count`` independent rows of ``logits`` draw."""
    rows = [make_sequence(prompt, seed=i, **params) for i in range(count)]
    return set(sample(logits.expand(count, -1), SampledRows(rows), END, draw))


def greedy(draw: Draw, logits: torch.Tensor, sequence: Sequence) -> int:
    return sample(logits[None], SampledRows([sequence]), END, draw)[0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 0.0}, {1}),
        ({"temperature": 1e-9}, {1}),
        ({"temperature": 1e-5}, {1}),
        ({"temperature": 1e-4}, {1}),
        ({"temperature": 0.0, "top_p": 1e-6, "top_k": 1, "min_p": 1.0}, {1}),
        ({"temperature": 2.0, "top_k": 1}, {1}),
        ({"temperature": 2.0, "top_p": 1e-9}, {1}),
        ({"temperature": 2.0, "min_p": 1.0}, {1}),
        ({"temperature": 2.0, "top_k": 2}, {1, 3}),
        ({"temperature": 2.0, "top_k": 3}, {1, 2, 3}),
        ({"temperature": 2.0, "top_k": 6}, {0, 1, 2, 3, 4, 5}),
        ({"temperature": 2.0, "top_k": 10_000}, {0, 1, 2, 3, 4, 5}),
        ({"temperature": 2.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}, {0, 1, 2, 3, 4, 5}),
        ({"temperature": 1.0, "top_p": 0.5}, {1}),  # 0.55 of the mass is on token 1
        ({"temperature": 1.0, "top_p": 0.56}, {1, 3}),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, {1}),  # 0.62 of what top-k left
        ({"temperature": 1.0, "min_p": 0.5}, {1, 3}),  # e^-0.5 = 0.61 of the best
        ({"temperature": 1.0, "min_p": 0.7}, {1}),
        ({"temperature": 2.0, "min_p": 0.7}, {1, 3}),  # min-p looks at the tempered distribution
    ],
)
def test_what_can_be_drawn(draw: Draw, params: dict[str, Any], expected: set[int]) -> None:
    assert drawn(draw, LOGITS, **params) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_randomness_is_spent_on_greedy_rows(draw: Draw, temperature: float) -> None:
    sequence = make_sequence(PROMPT, seed=1, temperature=temperature)
    before = sequence.rng.getstate()
    greedy(draw, LOGITS, sequence)
    assert (sequence.rng.getstate() == before) == (temperature == 0)


@pytest.mark.parametrize(("repetition", "presence", "frequency"), [
    (1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (0.7, 0.0, 0.0), (1.0, 1.5, 0.0), (1.0, -2.0, 0.0),
    (1.0, 0.0, 0.7), (1.0, 0.0, -2.0), (1.2, 0.4, 0.9), (2.0, 2.0, 2.0),
])  # fmt: skip
@pytest.mark.parametrize("output", [(), (3,), (3, 3, 5), (0, 0, 0, 1)])
def test_penalties_equal_the_definition(
    draw: Draw, repetition: float, presence: float, frequency: float, output: tuple[int, ...]
) -> None:
    sequence = make_sequence(
        PROMPT,
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    sequence.token_ids += output
    expected = LOGITS.tolist()
    for token in {*PROMPT, *output}:  # the prompt counts as well
        expected[token] *= 1 / repetition if expected[token] > 0 else repetition
    for token, count in Counter(output).items():  # only the answer counts
        expected[token] -= presence + frequency * count
    for bias in (0.0, 1.0, -1.0):  # and every order of magnitude around the winner
        probe = LOGITS + bias
        want = [e + bias for e in expected] if repetition == 1.0 else None
        if want is not None:
            assert greedy(draw, probe, sequence) == max(range(len(want)), key=want.__getitem__)
    assert greedy(draw, LOGITS, sequence) == max(range(len(expected)), key=expected.__getitem__)


@pytest.mark.parametrize("bias", [{4: 100.0}, {4: 50.0, 1: -100.0}, {4: 100}])
def test_a_large_bias_decides(draw: Draw, bias: dict[int, float]) -> None:
    assert drawn(draw, LOGITS, temperature=1.0, logit_bias=bias) == {4}


def test_a_bias_of_minus_100_bans(draw: Draw) -> None:
    banned = dict.fromkeys((1, 3), -100.0)
    assert drawn(draw, LOGITS, temperature=2.0, logit_bias=banned) == {0, 2, 4, 5}


def test_small_biases_add_up_with_the_logits(draw: Draw) -> None:
    assert greedy(draw, LOGITS, make_sequence(PROMPT, temperature=0.0, logit_bias={3: 0.4})) == 1
    assert greedy(draw, LOGITS, make_sequence(PROMPT, temperature=0.0, logit_bias={3: 0.6})) == 3


@pytest.mark.parametrize(
    ("params", "outputs", "expected"),
    [
        ({}, 0, 3),
        ({"min_tokens": 1}, 0, 1),
        ({"min_tokens": 1}, 1, 3),
        ({"min_tokens": 2}, 1, 1),
        ({"min_tokens": 1, "ignore_eos": True}, 0, 3),  # then an end token is a token like any other
        ({"min_tokens": 1, "ignore_eos": True, "stop_token_ids": (3,)}, 0, 1),
        ({"min_tokens": 1, "stop_token_ids": (1,)}, 0, 2),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_min_tokens_holds_ends_back(
    draw: Draw, params: dict[str, Any], outputs: int, expected: int, temperature: float
) -> None:
    logits = torch.tensor([0.0, 5.0, 4.0, 6.0])
    sequence = make_sequence(PROMPT, temperature=temperature, seed=1, **params)
    sequence.token_ids += [0] * outputs
    assert greedy(draw, logits, sequence) == expected


def test_the_logits_given_stay_as_they_are(draw: Draw) -> None:
    logits = LOGITS.clone()[None]
    sample(
        logits,
        SampledRows([make_sequence(PROMPT, temperature=1.0, logit_bias={0: 9.0}, min_tokens=2)]),
        END,
        draw,
    )
    assert torch.equal(logits[0], LOGITS)


def answers(draw: Draw, sequences: list[Sequence], logits: torch.Tensor, count: int = 12) -> list[list[int]]:
    """``count`` tokens per sequence, drawn together from the same logits again and again."""
    for _ in range(count):
        for sequence, token in zip(sequences, sample(logits, SampledRows(sequences), END, draw), strict=True):
            sequence.token_ids.append(token)
    return [s.output_ids for s in sequences]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 40},
    "wide top-k": {"top_k": 1500},
    "min-p": {"min_p": 0.02},
    "penalties": {"presence_penalty": 0.5, "repetition_penalty": 1.1, "top_p": 0.8},
    "hot": {"temperature": 2.0, "top_p": 0.999},
    "greedy": {"temperature": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [3000, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_do_not_change_what_is_drawn(draw: Draw, dtype: torch.dtype, vocabulary: int) -> None:
    """Also in bf16, where many logits are equal and their order is up to the sort."""
    logits = torch.randn(len(KINDS), vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)

    def fresh() -> list[Sequence]:
        return [make_sequence(PROMPT, seed=7 + i, **kind) for i, kind in enumerate(KINDS.values())]

    together = answers(draw, fresh(), logits)
    for i, name in enumerate(KINDS):
        alone = fresh()[i]
        assert answers(draw, [alone], logits[i : i + 1]) == [together[i]], name
    backwards = answers(draw, fresh()[::-1], logits.flip(0))
    assert backwards[::-1] == together


def test_a_seed_repeats_and_siblings_differ(draw: Draw) -> None:
    logits = torch.zeros(1, 500)

    def run(**params: Any) -> list[int]:
        return answers(draw, [make_sequence(PROMPT, **params)], logits)[0]

    assert run(seed=5) == run(seed=5)
    assert run(seed=5) != run(seed=6)
    assert run(seed=0) == run(seed=0), "0 is a seed"
    assert run(seed=5) != run(seed=-5)
    assert run(seed=5, index=0) != run(seed=5, index=1)
    assert run() != run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, 40),
        ({"temperature": 0.5}, 40),
        ({"top_k": 5}, 5),
        ({"top_p": 0.7}, None),
        ({"min_p": 0.2}, None),
        ({"top_k": 20, "top_p": 0.8, "min_p": 0.01, "temperature": 1.5}, None),
    ],
)
def test_the_drawn_distribution(draw: Draw, params: dict[str, Any], kept: int | None) -> None:
    """Chi-square of 20,000 draws against the definition, with fixed seeds."""
    count = 20_000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 1.5
    expected = reference(logits.tolist(), **params)
    assert kept is None or sum(p > 0 for p in expected) == kept
    sequences = [make_sequence((0,), seed=i, **params) for i in range(count)]
    found = Counter(sample(logits.expand(count, -1), SampledRows(sequences), END, draw))
    assert all(expected[token] > 0 for token in found)
    likely = [t for t, p in enumerate(expected) if p * count >= 5]
    chi = sum((found[t] - expected[t] * count) ** 2 / (expected[t] * count) for t in likely)
    freedom = max(len(likely) - 1, 1)
    assert chi < freedom + 4 * math.sqrt(2 * freedom) + 4, f"chi-square {chi:.1f} of {freedom} degrees"


def reference(
    logits: list[float], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """The distribution by its definition: temperature, then top-k, top-p of the rest, min-p."""
    weights = {t: math.exp(x / temperature) for t, x in enumerate(logits)}
    order = sorted(weights, key=weights.__getitem__, reverse=True)
    best = weights[order[0]]
    if top_k:
        order = order[:top_k]
    total, before, nucleus = sum(weights[t] for t in order), 0.0, []
    for token in order:
        if before < top_p * total:
            nucleus.append(token)
        before += weights[token]
    nucleus = [t for t in nucleus if weights[t] >= min_p * best]
    total = sum(weights[t] for t in nucleus)
    return [weights[t] / total if t in nucleus else 0.0 for t in range(len(logits))]


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(
        st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([-math.inf, 1e30, -1e30, 0.0])),
        min_size=2,
        max_size=12,
    ),
    temperature=st.sampled_from([0.0, 1e-5, 1e-3, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1e-12, 0.1, 0.9, 1.0]),
    top_k=st.integers(0, 14),
    min_p=st.sampled_from([0.0, 1e-9, 0.5, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_whatever_is_drawn_could_be_drawn(draw: Draw, logits: list[float], **params: Any) -> None:
    row = torch.tensor([0.0, *logits])
    token = greedy(draw, row, make_sequence((0,), **params))
    assert row[token] > -math.inf
    if params["top_k"]:
        assert int((row > row[token]).sum()) < params["top_k"]


def test_a_row_of_nan_does_not_reach_its_neighbours(draw: Draw) -> None:
    logits = torch.stack([LOGITS, torch.full_like(LOGITS, math.nan), LOGITS])
    kinds: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 2, "min_p": 0.1}]
    for params in kinds:
        rows = [make_sequence(PROMPT, seed=3, **params) for _ in range(3)]
        tokens = sample(logits, SampledRows(rows), END, draw)
        assert tokens[0] == tokens[2] == greedy(draw, LOGITS, make_sequence(PROMPT, seed=3, **params))
        assert 0 <= tokens[1] < len(LOGITS)


def test_logprobs_are_of_the_models_own_distribution() -> None:
    (first, second) = logprobs_of(torch.stack([LOGITS, -LOGITS]), [2, 4], 3)
    table = torch.log_softmax(LOGITS, -1)
    assert first.token_id == 2
    assert first.logprob == pytest.approx(float(table[2]))
    assert [token for token, _ in first.top] == [1, 3, 2]
    assert [lp for _, lp in first.top] == pytest.approx([float(table[t]) for t in (1, 3, 2)])
    assert second.logprob == pytest.approx(float(torch.log_softmax(-LOGITS, -1)[4]))


@pytest.mark.parametrize(("top", "given_back"), [(0, 0), (1, 1), (6, 6), (20, 6)])
def test_as_many_top_logprobs_as_there_are(top: int, given_back: int) -> None:
    (found,) = logprobs_of(LOGITS[None], [0], top)
    assert len(found.top) == given_back
    assert math.isfinite(found.logprob)
