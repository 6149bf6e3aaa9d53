"""Greedy answers of the real model: native kernels in bf16 against PyTorch in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.texts import EXACT, MODELS, NATIVE, QUESTIONS, Text, differences, texts
from manylora.server.engine.sequence import TokenLogprob

COUNT, TOKENS = 15, 12  # bench.texts asks all fifty: 45 are the same
BF16_STEP = 0.125  # between neighbouring bf16 numbers of the size of the likeliest logits, 16 to 32


def text(*steps: tuple[int, dict[int, float]]) -> Text:
    """An answer of these tokens; beside each, the log-probabilities it was chosen by."""
    logprobs = tuple(TokenLogprob(t, table[t], tuple(table.items())) for t, table in steps)
    return Text(tuple(t for t, _ in steps), logprobs)


def test_a_difference_is_found_with_its_gap() -> None:
    same, other = text((1, {1: -0.1}), (2, {2: -0.5, 3: -0.75})), text((1, {1: -0.1}), (3, {3: -0.5}))
    (found,) = differences([same, other], [same, same])
    assert (found.question, found.model, found.token, found.gap) == (1, MODELS[1], 1, 0.25)


@pytest.mark.sweep
@pytest.mark.real
def test_texts_differ_at_ties_only(real_model_dir: Path) -> None:
    """Of the base, three adapters and a mix in one batch; three prompts have about 200 tokens."""
    questions = QUESTIONS[:COUNT]
    native, exact = (texts(real_model_dir, setting, questions, TOKENS) for setting in (NATIVE, EXACT))
    found = differences(native, exact)
    assert all(difference.gap < BF16_STEP for difference in found), found
    assert len(found) <= 0.2 * COUNT, found
    assert len({answer.token_ids for answer in native}) > 0.8 * COUNT
