"""Where in a schema an objection of the grammar library comes from, which names no place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

_SHARED = ("$defs", "definitions", "$schema")
_MAX_TRIES = 200  # compilations

Objection = Callable[[Any], str]  # what the library says of a schema; "" if it takes it
Subschemas = Callable[[Any], Iterator[tuple[str, Any]]]


def locate(schema: dict[str, Any], message: str, objection: Objection, subschemas: Subschemas) -> str:
    """The path of the keyword that ``message``, an objection to ``schema``, is about; "" if that is unclear.

    It is in the innermost schema that meets the same objection alone, which without it meets none or another.
    """
    shared = {key: schema[key] for key in _SHARED if key in schema}
    found, at_fault = "", schema
    for path, each in islice(subschemas(schema), _MAX_TRIES):
        inside = path.startswith(found) and isinstance(each, dict)
        if path and inside and objection({**shared, **each}) == message:
            found, at_fault = path, each
    causes = []
    for key in at_fault:
        rest = {name: value for name, value in at_fault.items() if name != key}
        if key not in _SHARED and objection({**shared, **rest}) != message:
            causes.append(key)
    named = [key for key in causes if key in message]
    return f"{found}.{max(named or causes[:1], key=len)}" if causes else found
