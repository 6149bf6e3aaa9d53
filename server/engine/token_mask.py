"""Which tokens an answer may go on with, by what its request allows and forbids, beside its grammar."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from manylora.server.kernels.inputs import Int32

Ids = tuple[int, ...]


class TokenMask:
    """The bits of one answer's next token. Bad words are looked for in the answer, not in its prompt."""

    def __init__(self, allowed: Ids | None, bad_words: Iterable[Ids]) -> None:
        """
        Args:
            allowed: the only tokens that may be drawn; None: all.
            bad_words: none of these sequences of tokens, none of them empty, may come about.
        """
        self._allowed = allowed
        self._after: dict[Ids, list[int]] = {}  # what stands before the last token of words -> those tokens
        for word in bad_words:
            self._after.setdefault(word[:-1], []).append(word[-1])
        self._lengths = sorted({len(prefix) for prefix in self._after})
        self._own: Int32 | None = None  # what the request allows at any place
        # Bit t % 32 of word t // 32: token t may follow. In place: who draws keeps its address.
        self._words: Int32 = np.zeros(0, np.int32)
        self.is_empty = False  # no token may follow; the bits are of no use then, and all set

    def fill(
        self, width: int, tokens: Seq[int], start: int, grammar: Int32 | None, held_back: Iterable[int]
    ) -> Int32:
        """The words with the bits of what may follow.

        Args:
            width: tokens that the answer's model knows: the same in each call.
            tokens: of the prompt and the answer so far.
            start: the first of the answer's.
            grammar: the words of what its grammar lets follow; None: it has none.
            held_back: tokens that may not come yet.
        """
        if self._own is None:
            self._own = self._anywhere(width)
            self._words = np.empty_like(self._own)
        words = self._words
        words[:] = self._own
        if grammar is not None:
            words &= grammar[: len(words)]
        _clear(words, [*self._completing(tokens, start), *held_back], width)
        self.is_empty = not words.any()
        if self.is_empty:
            words.fill(-1)
        return words

    def _anywhere(self, width: int) -> Int32:
        flags = np.zeros(-(-width // 32) * 32, bool)
        if self._allowed is None:
            flags[:width] = True
        else:
            flags[[token for token in self._allowed if token < width]] = True
        return np.packbits(flags, bitorder="little").view(np.int32)

    def _completing(self, tokens: Seq[int], start: int) -> list[int]:
        """The tokens that would complete a bad word."""
        found: list[int] = []
        for length in self._lengths:
            first = len(tokens) - length
            if first < start:
                break
            found += self._after.get(tuple(tokens[first:]), ())
        return found


def _clear(words: Int32, tokens: Seq[int], width: int) -> None:
    """Unset the bits of ``tokens``; a model of so many tokens has no others."""
    known = np.array([token for token in tokens if token < width], np.int64)
    np.bitwise_and.at(words, known >> 5, ~(np.uint32(1) << (known & 31).astype(np.uint32)).view(np.int32))
