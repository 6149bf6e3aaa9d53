"""PEFT's rules for expressions, with Python's own engine: to be run in a bounded process only.

An expression of ten characters can take this engine longer than the age of the universe. Imports nothing of
ours: :func:`manylora.adapters.bounded_process.run_bounded` loads this file alone.
"""

from __future__ import annotations

import re
from typing import Any


def match_names(question: dict[str, Any]) -> dict[str, Any]:
    """Which of ``names`` each of ``expressions`` fits by ``rule``: "whole", "ending" or "block".

    Returns:
        ``{"fits": [[[name's place, block], ...], ...]}`` in the order of the expressions; the block is what
        the rule of that name finds, else None. ``{"fault", "expression"}`` for an expression that is none.
    """
    fits = []
    for place, expression in enumerate(question["expressions"]):
        try:
            fits.append(_fits(expression, question["names"], question["rule"]))
        except (re.error, OverflowError, RecursionError) as error:
            return {"fault": str(error) or "it is too large", "expression": place}
    return {"fits": fits}


def _fits(expression: str, names: list[str], rule: str) -> list[tuple[int, int | None]]:
    if rule == "whole":  # target_modules, exclude_modules, feedforward_modules
        whole = re.compile(expression)
        return [(place, None) for place, name in enumerate(names) if whole.fullmatch(name)]
    if rule == "ending":  # rank_pattern, alpha_pattern
        ending = re.compile(rf"(.*\.)?({expression})$")
        return [(place, None) for place, name in enumerate(names) if ending.match(name)]
    block = re.compile(rf"(?:^|.*?\.){expression}\.(?P<idx>\d+)\.")  # layers_pattern
    found = [(place, block.match(name)) for place, name in enumerate(names)]
    return [(place, _number(match["idx"])) for place, match in found if match is not None]


def _number(digits: str | None) -> int | None:
    return None if digits is None else int(digits)
