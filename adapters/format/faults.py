"""Collecting every reason why an artifact is refused, without letting a hostile file write the message."""

from __future__ import annotations

from collections.abc import Iterable

from manylora.adapters.errors import ArtifactError

MAX_FAULTS = 20
MAX_SENTENCE = 500  # characters of one fault
MAX_SHOWN = 100  # characters of one value quoted from the artifact


def shown(value: object) -> str:
    """``value`` as Python would write it, shortened; control characters and bad Unicode are escaped."""
    if isinstance(value, str):
        return _shortened(repr(value[: MAX_SHOWN + 1]))
    if isinstance(value, dict | list | tuple | set | frozenset) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)} entries"
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of more than 38 digits"
    return _shortened(_plain_repr(value))


def some(names: Iterable[str], count: int, limit: int = 4) -> str:
    """The first few of ``count`` names in quotes, and how many more there are."""
    first = [shown(name) for name, _ in zip(names, range(limit), strict=False)]
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return ", ".join(first) + more


def _plain_repr(value: object) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer beyond the digit limit
        return f"a {type(value).__name__}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


class Faults:
    """The faults found so far; only the first few are kept, all are counted."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, sentence: str) -> None:
        """Record one fault."""
        self._count += 1
        if len(self._sentences) < MAX_FAULTS:
            cut = sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[:MAX_SENTENCE]}…"
            self._sentences.append(cut)

    def raise_any(self) -> None:
        """Raise one ArtifactError with every fault that was found.

        Raises:
            ArtifactError: at least one fault was added.
        """
        if not self._count:
            return
        hidden = self._count - len(self._sentences)
        raise ArtifactError([*self._sentences, f"and {hidden} more faults"] if hidden else self._sentences)
