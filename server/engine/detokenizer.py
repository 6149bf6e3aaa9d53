"""Token ids to text, piece by piece: whole characters only, and of stop strings what is wanted."""

from __future__ import annotations

from collections.abc import Mapping

from manylora.server.engine.sequence import TokenReader

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes; more undecodable tokens than this are no character in the making
_CONTEXT = 6  # tokens decoded along with the new ones: how a token reads can depend on those before it


class Detokenizer:
    """The text of one answer. Text that could still become a stop string is held back."""

    def __init__(
        self,
        tokenizer: TokenReader,
        prompt_ids: list[int],
        *,
        stop: tuple[str, ...],
        skip_special_tokens: bool,
        shown: frozenset[int] = frozenset(),
        keep_stop: bool = False,
        close: Mapping[int, str] | None = None,
    ) -> None:
        """``shown``: special tokens that are not skipped; ``keep_stop``: stop strings are text; ``close``:
        the texts of tokens between which no blanks are written, by id.
        """
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._shown = shown
        self._stop = stop
        self._keep_stop = keep_stop
        self._close = {} if close is None else close
        self._is_close = False  # the last token is one of them
        self._window = list(prompt_ids[-_CONTEXT - _LONGEST_CHARACTER :])
        self._window_text = self._shorten()
        if self._window_text.endswith(_INCOMPLETE):
            self._window, self._window_text = [], ""
        self._pending = 0  # newest tokens of the window whose text is not out yet
        self._held = ""

    def push(self, token_id: int, *, stoppable: bool = True) -> tuple[str, str | None]:
        """Take one token. Returns the text that is now certain, and the stop string that ended it, if any.

        With ``stoppable`` False (an answer still below its minimum) stop strings are ordinary text.
        """
        self._window.append(token_id)
        self._pending += 1
        text = self._held + self._without_blanks(token_id, self._advance(final=False))
        if not stoppable:
            self._held = ""
            return text, None
        return self._release(text)

    def flush(self) -> tuple[str, str | None]:
        """The rest of the text at the end of the answer; a stop string can still complete here."""
        text, matched = self._release(self._held + self._advance(final=True))
        rest, self._held = ("" if matched else self._held), ""
        return text + rest, matched

    def _without_blanks(self, token_id: int, text: str) -> str:
        """``text``, that a token adds, without the blanks that only part it from one before it."""
        own = self._close.get(token_id)
        follows, self._is_close = self._is_close, own is not None
        if own is None or not follows or not text.endswith(own) or text.removesuffix(own).strip(" "):
            return text
        return own

    def _advance(self, *, final: bool) -> str:
        """New text of the window, if its last character is complete."""
        text = self._decode(self._window)
        incomplete = text.endswith(_INCOMPLETE) and not final
        if not self._pending or (incomplete and self._pending < _LONGEST_CHARACTER):
            return ""
        # After that many tokens all but the last character are settled, that one can still become another.
        new = text[len(self._window_text) : len(text) - incomplete]
        text = self._shorten()
        self._window_text = text[: len(text) - incomplete]
        self._pending = _LONGEST_CHARACTER - 1 if incomplete else 0
        return new

    def _shorten(self) -> str:
        """Drop old tokens from the window; returns the text of what stays.

        A window that began inside a character would read as broken: with byte fallback, all of it.
        """
        first = max(len(self._window) - _CONTEXT, 0)
        for start in range(first, max(first - _LONGEST_CHARACTER, -1), -1):
            text = self._decode(self._window[start:])
            if not text.startswith(_INCOMPLETE):
                self._window = self._window[start:]
                return text
        self._window = self._window[first:]
        return self._decode(self._window)

    def _release(self, text: str) -> tuple[str, str | None]:
        """Split ``text`` into what may go out and what is held; cut at the earliest stop string."""
        found = [(position, stop) for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            position, matched = min(found)
            self._held = ""
            return text[: position + len(matched) * self._keep_stop], matched
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], None

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip, shown=self._shown)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
