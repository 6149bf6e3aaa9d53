"""Measures of similarity against their definitions, spelled out slowly."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.grading.similarity import MAX_TEXT, MEASURES, cosine, longest_common

TEXTS = st.text(alphabet="ab .Ä", max_size=14)


def slow_common(first: Sequence[Any], second: Sequence[Any]) -> int:
    @lru_cache(None)
    def length(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@given(TEXTS, TEXTS)
def test_longest_common_subsequence(first: str, second: str) -> None:
    assert longest_common(first, second) == slow_common(first, second)


@given(TEXTS, TEXTS)
def test_all_are_from_0_to_1_and_1_for_the_same(first: str, second: str) -> None:
    for name, measure in MEASURES.items():
        assert 0 <= measure(first, second) <= 1, name
        order = int(name[-1]) if name[-1].isdigit() else 1
        if len(first.split()) >= order and name != "bleu" and first.isalpha():
            assert measure(first, first) == pytest.approx(1), name
    for name in ("fuzzy_match", "gleu", "rouge_1", "rouge_2", "rouge_l"):
        assert MEASURES[name](first, second) == pytest.approx(MEASURES[name](second, first)), name


FOUND = "the cat sat on the mat"
WANTED = "the cat is on the mat"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rouge_1", 5 / 6),  # the, cat, on, the, mat
        ("rouge_2", 3 / 5),  # the cat, on the, the mat
        ("rouge_3", 1 / 4),  # on the mat
        ("rouge_4", 0),
        ("rouge_5", 0),
        ("rouge_l", 5 / 6),
        ("gleu", (5 + 3 + 1 + 0) / (6 + 5 + 4 + 3)),
        ("bleu", math.exp(sum(map(math.log, (5 / 6, 4 / 6, 2 / 5, 1 / 4))) / 4)),
        ("fuzzy_match", 2 * 20 / 43),
    ],
)
def test_by_hand(name: str, value: float) -> None:
    assert MEASURES[name](FOUND, WANTED) == pytest.approx(value)


def test_short_texts_are_penalized_by_bleu() -> None:
    assert MEASURES["bleu"]("the cat is on", WANTED) == pytest.approx(math.exp(1 - 6 / 4))
    assert MEASURES["bleu"](f"{WANTED} and more", WANTED) < 1


def test_case_and_marks() -> None:
    assert MEASURES["rouge_1"]("The CAT, sat!", "the cat sat") == 1
    assert MEASURES["gleu"]("The cat", "the cat") < 1
    assert MEASURES["rouge_1"]("größe", "GRÖSSE") < 1
    assert MEASURES["rouge_l"]("", "") == MEASURES["bleu"]("", "") == MEASURES["fuzzy_match"]("", "") == 1
    assert MEASURES["rouge_l"]("", "a") == MEASURES["bleu"]("a", "") == MEASURES["gleu"]("", "a") == 0


def test_the_longest_texts_take_no_time() -> None:
    text, other = "ab " * (MAX_TEXT // 3), "ba " * (MAX_TEXT // 3)
    began = time.process_time()
    for measure in MEASURES.values():
        measure(text, other)
    assert time.process_time() - began < 10  # all nine; far less without load


def test_cosine() -> None:
    assert cosine([3, 4], [6, 8]) == pytest.approx(1)
    assert cosine([1, 0], [0, 1]) == cosine([1, 0], [-1, 0]) == cosine([0, 0], [1, 1]) == 0
    assert cosine([1, 0], [1, 1]) == pytest.approx(1 / math.sqrt(2))
