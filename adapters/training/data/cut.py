"""Cutting sequences to the longest allowed length, and counting what that costs."""

from __future__ import annotations

from dataclasses import replace

from manylora.adapters.training.data.faults import Finding, Findings
from manylora.adapters.training.data.template import Encoded, EncodedPair, EncodedText, EncodedTexts

Item = Encoded | EncodedPair | EncodedText | EncodedTexts
MAX_TOLD = 10  # warnings of one kind that name their line; the rest is counted


class Cutter:
    """Cuts sequences to a length and counts what that costs."""

    def __init__(self, max_length: int, findings: Findings) -> None:
        self._max = max_length
        self._findings = findings
        self._last: Finding | None = None
        self.count = self.tokens = self.dropped = 0

    def cut(self, item: Item) -> Item | None:
        """``item`` within the length, or None where nothing is left to learn."""
        length, cut = _length(item), item
        if length > self._max:
            cut = _shorten(item, self._max)
            self.count += 1
            self.tokens += _beyond(item, self._max)
        left = _is_learnable(cut)
        if length > self._max or not left:
            lost = f"has {length} tokens, {length - self._max} beyond max_length {self._max}"
            rest = "they are cut off" if left else "nothing is left to learn, so it is dropped"
            self._warn(item, f"{lost}: {rest}")
        self.dropped += not left
        return cut if left else None

    def tell_rest(self) -> None:
        """Tell in one sentence what was beyond the first warnings."""
        if self.count > MAX_TOLD and self._last is not None:
            self._findings.warn(
                self._last.path,
                0,
                f"{self.count} sequences exceed max_length {self._max}: {self.tokens} tokens cut off, "
                f"{self.dropped} sequences dropped",
            )

    def _warn(self, item: Item, message: str) -> None:
        self._last = Finding(item.origin.path, item.origin.line, message)
        if self.count <= MAX_TOLD:
            self._findings.warn(self._last.path, self._last.line, message)


def _length(item: Item) -> int:
    if isinstance(item, EncodedPair):
        return len(item.prompt_ids) + max(len(item.chosen_ids), len(item.rejected_ids))
    if isinstance(item, EncodedTexts):
        return max(map(len, item.texts))
    return len(item.input_ids)


def _beyond(item: Item, length: int) -> int:
    """Tokens that are lost by cutting to ``length``, of a preference those of its longer side."""
    if isinstance(item, EncodedTexts):
        return sum(max(0, len(text) - length) for text in item.texts)
    return _length(item) - length


def _shorten(item: Item, length: int) -> Item:
    if isinstance(item, Encoded):
        return item.cut(length)
    if isinstance(item, EncodedText):
        return replace(item, input_ids=item.input_ids[:length])
    if isinstance(item, EncodedTexts):
        return replace(item, texts=[text[:length] for text in item.texts])
    room = max(0, length - len(item.prompt_ids))
    return replace(item, chosen_ids=item.chosen_ids[:room], rejected_ids=item.rejected_ids[:room])


def _is_learnable(item: Item) -> bool:
    if isinstance(item, Encoded):
        return item.supervised > 0
    if isinstance(item, EncodedText):
        return bool(item.input_ids)
    if isinstance(item, EncodedTexts):
        return all(item.texts)
    return bool(item.chosen_ids and item.rejected_ids) and item.chosen_ids != item.rejected_ids
