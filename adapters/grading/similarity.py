"""How alike two texts are: measures from 0 to 1, each by its own definition.

=========== ==========================================================================================
fuzzy_match 2·LCS / (characters of both), the insertion-deletion similarity of rapidfuzz's ``ratio``
bleu        Papineni et al. 2002 for one sentence, up to 4-grams; orders from 2 on smoothed by adding one
            (Lin and Och 2004)
gleu        Wu et al. 2016: the lesser of precision and recall over all 1- to 4-grams
rouge_N     Lin 2004: F1 of N-grams
rouge_l     Lin 2004: F1 of the longest common subsequence of words
=========== ==========================================================================================

Words of ``bleu`` and ``gleu`` are runs of letters and digits, and single other characters; those of ``rouge``
are such runs in lower case. METEOR needs WordNet's synonyms, which are not here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

MAX_TEXT: Final = 32_768  # characters

_TOKENS = re.compile(r"\w+|[^\w\s]")
_WORDS = re.compile(r"[^\W_]+")
_ORDERS: Final = 4


def fuzzy_match(text: str, reference: str) -> float:
    """The similarity of characters."""
    total = len(text) + len(reference)
    return 1.0 if not total else 2 * longest_common(text, reference) / total


def bleu(text: str, reference: str) -> float:
    """Precision of n-grams, with a penalty for texts shorter than the reference."""
    found, wanted = _TOKENS.findall(text), _TOKENS.findall(reference)
    if not found or not wanted:
        return float(found == wanted)
    logs = 0.0
    for order in range(1, _ORDERS + 1):
        matches, total = _matches(found, wanted, order), max(0, len(found) - order + 1)
        if order > 1:
            matches, total = matches + 1, total + 1
        if not matches:
            return 0.0
        logs += math.log(matches / total)
    penalty = min(0.0, 1 - len(wanted) / len(found))
    return math.exp(penalty + logs / _ORDERS)


def gleu(text: str, reference: str) -> float:
    """The lesser of precision and recall."""
    found, wanted = _TOKENS.findall(text), _TOKENS.findall(reference)
    if not found or not wanted:
        return float(found == wanted)
    orders = range(1, _ORDERS + 1)
    matches = sum(_matches(found, wanted, order) for order in orders)
    most = max(sum(max(0, len(words) - order + 1) for order in orders) for words in (found, wanted))
    return matches / most


def rouge_n(order: int) -> Callable[[str, str], float]:
    """F1 of n-grams of ``order``."""

    def measure(text: str, reference: str) -> float:
        found, wanted = _words(text), _words(reference)
        totals = [max(0, len(words) - order + 1) for words in (found, wanted)]
        return _f1(_matches(found, wanted, order), *totals, same=found == wanted)

    return measure


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence."""
    found, wanted = _words(text), _words(reference)
    return _f1(longest_common(found, wanted), len(found), len(wanted), same=found == wanted)


MEASURES: Final[Mapping[str, Callable[[str, str], float]]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{order}": rouge_n(order) for order in range(1, 6)},
    "rouge_l": rouge_l,
}


def longest_common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence.

    One bit for each item of ``first`` (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    where: dict[Hashable, int] = {}
    for place, item in enumerate(first):
        where[item] = where.get(item, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for item in second:
        hits = row & where.get(item, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(first) - row.bit_count()


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """The cosine of the angle between two embeddings; those that point apart count as 0."""
    norms = math.hypot(*first) * math.hypot(*second)
    return (
        0.0
        if not norms
        else min(1.0, max(0.0, sum(a * b for a, b in zip(first, second, strict=True)) / norms))
    )


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _matches(found: Sequence[str], wanted: Sequence[str], order: int) -> int:
    return (_grams(found, order) & _grams(wanted, order)).total()


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def _f1(matches: int, found: int, wanted: int, *, same: bool) -> float:
    if not found + wanted:
        return float(same)
    return 2 * matches / (found + wanted)
