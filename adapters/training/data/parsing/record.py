"""One object of a data file on its way to a row: its fields by name, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.parsing.layouts import Layout
from manylora.adapters.training.data.rows import Origin


@dataclass(slots=True)
class Notes:
    """How often something harmless was met in a file, with the first line of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, text: str, line: int) -> None:
        self.counts[text] = self.counts.get(text, 0) + 1
        self.first.setdefault(text, line)


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a file, read through the file's layout."""

    value: Mapping[str, Any]
    origin: Origin
    layout: Layout
    say: Callable[[str], None]  # takes one fault
    notes: Notes
    used: set[str] = field(default_factory=set)  # keys of the file that were looked at

    def get(self, name: str) -> Any:
        """What the row has for a format's field; None where it has nothing."""
        key = self.layout.key(name)
        if key is None:
            return None
        self.used.add(key)
        return self.value.get(key)

    def name(self, name: str) -> str:
        """What the file calls a format's field, for faults."""
        return self.layout.key(name) or name

    def note(self, text: str) -> None:
        """Count something that was tolerated."""
        self.notes.add(text, self.origin.line)

    def text(self, name: str) -> str | None:
        """A field that must hold text; None where it does not, which is said."""
        value, field_ = self.get(name), self.name(name)
        if not isinstance(value, str):
            self.say(f"{field_}: must be text, not {shown(value)}")
        elif not value.strip():
            self.say(f"{field_}: is empty: write the text or remove the row")
        else:
            return value
        return None

    def optional_text(self, name: str) -> str | None:
        """A field that may be absent or empty, then ""; None: it is no text, which is said."""
        value = self.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.say(f"{self.name(name)}: must be text, not {shown(value)}")
            return None
        return value if value.strip() else ""
