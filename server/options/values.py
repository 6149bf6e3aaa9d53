"""How the text of flags, environment variables and YAML becomes values: sizes, lists, NAME=PATH pairs.

Each function takes what any of the three sources delivers and returns what the field's type accepts;
``ValueError`` carries the sentence for the user.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction

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
    """``"auto"`` in any of the sources means ``None``: the server decides."""
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def refuse_service_link(value: object) -> object:
    """Kubernetes sets ``MANYLORA_PORT=tcp://…`` in every pod beside a Service called manylora."""
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ValueError(
            "is a Kubernetes service link, not a port number: set enableServiceLinks: false in the pod, "
            "or give the Service another name"
        )
    return value


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
    """A list from repeated flags, a YAML list, one scalar, JSON, or text with commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def parse_pairs(value: object) -> object:
    """A mapping from ``NAME=PATH`` entries in any of the forms of :func:`parse_list`, or from a mapping."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return _json(value)
    entries = parse_list(value)
    if not isinstance(entries, list | tuple):
        return entries
    pairs: dict[str, str] = {}
    for entry in entries:
        name, separator, path = str(entry).partition("=")
        if not (name and separator and path):
            raise ValueError(f"must be NAME=PATH, not {str(entry)[:80]!r}")
        if name in pairs:
            raise ValueError(f"{name[:80]!r} is given twice")
        pairs[name] = path
    return pairs


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
