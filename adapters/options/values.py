"""How the text of flags, environment variables and YAML becomes values: sizes, lists, NAME=VALUE pairs.

Each function takes what any of the sources delivers and returns what the field's type accepts;
``ValueError`` carries the sentence for the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]  # a path that may begin with ~

_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def read_auto(value: object) -> object:
    """``None`` for the text ``auto``, which leaves the choice to the program; anything else as it is."""
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def parse_size(value: object) -> int:
    """Bytes from ``2GiB``, ``512MiB``, ``1.5GB`` or a number of bytes. GB is 10⁹ bytes, GiB 2³⁰."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("must be a size such as 2GiB, 512MiB, 1.5GB or a number of bytes")
    size = Fraction(match[1]) * unit
    if size.denominator != 1:
        raise ValueError("must be a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Bytes in the largest binary unit that divides them: 2**30 -> ``1GiB``; :func:`parse_size` reads it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit.lower()] == 0:
            return f"{size // _UNITS[unit.lower()]}{unit}"
    return str(size)


def parse_list(value: object) -> object:
    """A list from one text with commas or JSON; items of a list, or of repeated flags, may hold commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value)
    return _split(value)


def split_list(value: object) -> object:
    """A list of names from one text or several; each is cut at its commas."""
    if isinstance(value, str):
        return _split(value)
    if not isinstance(value, list | tuple):
        return value
    return [part for item in value for part in (_split(item) if isinstance(item, str) else [item])]


def wrap_text(value: object) -> object:
    """A list of texts from one text or several; their commas mean nothing."""
    return [value] if isinstance(value, str) else value


def parse_named_paths(value: object) -> object:
    """A mapping from ``NAME=PATH`` entries, given as :func:`parse_list` has it, from JSON or a mapping."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return _json(value)
    return _pairs(parse_list(value), "NAME=PATH", str.partition)


def parse_pattern_numbers(value: object) -> object:
    """A mapping from ``PATTERN=NUMBER`` entries, given as :func:`split_list` has it, or from a mapping."""
    return _pairs(split_list(value), "PATTERN=NUMBER", str.rpartition)


def parse_settings(value: object) -> object:
    """A mapping from ``KEY=VALUE`` entries, whose commas mean nothing, from JSON or from a mapping."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return _json(value)
    return _pairs(wrap_text(value), "KEY=VALUE", str.partition)


def _pairs(entries: object, form: str, cut: Callable[[str, str], tuple[str, str, str]]) -> object:
    """``entries`` of ``form`` as a mapping; what is no list is left to the field's type."""
    if not isinstance(entries, list | tuple):
        return entries
    pairs: dict[str, str] = {}
    for entry in entries:
        name, separator, content = cut(str(entry), "=")
        if not (name and separator and content):
            raise ValueError(f"must be {form}, not {str(entry)[:80]!r}")
        if name in pairs:
            raise ValueError(f"{name[:80]!r} is given twice")
        pairs[name] = content
    return pairs


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
