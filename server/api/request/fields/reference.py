"""The table of fields in Markdown, as ``docs/api.md`` prints it."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from manylora.server.api.request.fields.field import APIS, Field, Sort
from manylora.server.api.request.fields.table import FIELDS

_HEAD = "| field | in | known to | |\n|---|---|---|---|"


def tables() -> str:
    """One table for each of the four sorts, the fields by name."""
    return "\n\n".join(_table(sort) for sort in Sort)


def _table(sort: Sort) -> str:
    rows = sorted((row for row in FIELDS if row.sort is sort), key=lambda row: (row.name, row.places))
    title = f"**{sort.value[0].upper()}{sort.value[1:]}**"
    return "\n".join([title, "", _HEAD, *map(_row, rows)])


def _row(row: Field) -> str:
    places = ", ".join(row.places)
    known_to = ", ".join(APIS[letter] for letter in row.known_to)
    return f"| `{row.name}` | {places} | {known_to} | {_note(row)} |"


def _note(row: Field) -> str:
    values = _listed([f"`{orjson.dumps(value).decode()}`" for value in row.taken])
    if not values:
        return row.note
    taken = f"taken: {values}" if row.sort is Sort.DEFAULT else f"{values}: as if left out"
    return f"{taken}; {row.note}" if row.note else taken


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values)
