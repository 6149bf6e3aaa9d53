"""JSON as rows may hold it: no key twice, no NaN, no half characters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

_LONE = re.compile("[\ud800-\udfff]")


def loads(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: it is, but no row can hold it; the message says why, with the key.
    """
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if "\\u" in text:  # the only way that half a character gets into text that was UTF-8
        refuse_lone_surrogates(value)
    return value


def refuse_lone_surrogates(value: object) -> None:
    """Raise if a text in ``value``, or a key, has half of a surrogate pair.

    Raises:
        ValueError: naming the key.
    """
    for where, text in _texts(value, ""):
        found = _LONE.search(text)
        if found is not None:
            raise ValueError(
                f"{where or 'the row'}: has half a character (\\u{ord(found[0]):04x}, a lone surrogate) at "
                f"position {found.start() + 1}: write the whole character or remove it"
            )


def _texts(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Every text in ``value`` with the key it stands at; keys are texts too."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inside = f"{where}.{key}" if where else str(key)
            yield ascii(inside), str(key)
            yield from _texts(item, inside)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice: keep one")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number: write null or a number")
