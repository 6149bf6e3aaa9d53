"""Text of strangers (answers, names, what an adapter says of itself) as it is shown to people."""

from __future__ import annotations

from html import escape

_CONTROLS = (*range(32), *range(127, 160))
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_TAMED = {code: "\ufffd" for code in (*_CONTROLS, *_DIRECTIONS) if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    """A text without control characters, and without those that turn around the order of others.

    An answer must not move the cursor, or be read from right to left into what stands beside it.
    """
    return text.translate(_TAMED)


def as_html(text: str) -> str:
    """A text of a stranger as HTML that shows it, and does nothing else."""
    return escape(plain(text))
