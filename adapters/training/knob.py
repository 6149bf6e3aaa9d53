"""How an option of the trainer looks in help and docs, and why its default is what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class Knob:
    """Stands beside each field of the configuration."""

    panel: str
    metavar: str
    meaning: str
    why: str  # the reason for the default
    default: str | None = None  # how it is shown where the value itself says little
    repeatable: bool = False
    switch: bool = False  # --x / --no-x


def knob_of(field: FieldInfo) -> Knob:
    """The :class:`Knob` that every field of the configuration carries."""
    return next(item for item in field.metadata if isinstance(item, Knob))


def flag_of(name: str) -> str:
    """``learning_rate`` -> ``--learning-rate``."""
    return "--" + name.replace("_", "-")


def default_text(field: FieldInfo) -> str:
    """The default as help and docs show it."""
    knob = knob_of(field)
    if knob.default is not None:
        return knob.default
    value = field.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ([], {}, ()):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_list(value: object) -> object:
    """A list from repeated flags, a YAML list, or text with commas."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return [part for item in value for part in _parts(item)]


def as_texts(value: object) -> object:
    """A list whose items may hold commas."""
    return [value] if isinstance(value, str) else value


def as_pairs(value: object) -> object:
    """A mapping from ``PATTERN=NUMBER`` entries, given repeatedly or with commas, or from a mapping."""
    if isinstance(value, Mapping):
        return dict(value)
    entries = as_list(value)
    if not isinstance(entries, list):
        return value
    pairs: dict[str, str] = {}
    for entry in entries:
        name, separator, number = str(entry).rpartition("=")
        if not separator or not name:
            raise ValueError(f"must be PATTERN=NUMBER, not {str(entry)[:80]!r}")
        if name in pairs:
            raise ValueError(f"{name[:80]!r} is given twice")
        pairs[name] = number
    return pairs


def _parts(item: object) -> list[object]:
    return [part.strip() for part in item.split(",") if part.strip()] if isinstance(item, str) else [item]
