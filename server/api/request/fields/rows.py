"""How rows of the table of fields are written."""

from __future__ import annotations

from typing import Any

from manylora.server.api.request.fields.field import GENERATION, Field, Place, Sort

Places = tuple[Place, ...]


def served(name: str, known_to: str, places: Places = GENERATION, *taken: Any, note: str = "") -> Field:
    """A field that does what it says; ``taken`` are values that the schema does not have to read."""
    return Field(name, known_to, places, Sort.SERVED, taken, note)


def hint(name: str, known_to: str, places: Places = GENERATION, *, note: str = "") -> Field:
    """A field that can change no answer."""
    return Field(name, known_to, places, Sort.HINT, (), note)


def only(name: str, known_to: str, *taken: Any, places: Places = GENERATION, note: str = "") -> Field:
    """A field that is taken with the values ``taken``, which ask for what is done anyway."""
    return Field(name, known_to, places, Sort.DEFAULT, taken, note)


def refused(name: str, known_to: str, places: Places = GENERATION, *, note: str = "") -> Field:
    """A field that is refused with any value but null."""
    return Field(name, known_to, places, Sort.REFUSED, (), note)
