"""Where two answers differ, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_MAX_WORDS = 2000  # of an answer that is looked at word by word: the search is quadratic


def differing(baseline: str, other: str) -> list[tuple[str, bool]]:
    """An answer in pieces, each with whether the baseline's answer lacks it there."""
    before, after = _WORD.findall(baseline), _WORD.findall(other)
    if max(len(before), len(after)) > _MAX_WORDS:
        return [(other, baseline != other)]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    return [
        ("".join(after[start:end]), kind != "equal")
        for kind, _, _, start, end in matcher.get_opcodes()
        if end > start
    ]
