"""Marks in the content of a conversation, by which a control token spelled there is told from the template's.

A user may write ``<|im_end|>``, which the template writes to end a turn. Before a conversation is rendered,
one character that occurs nowhere in it is put inside each such text: ``<*|im_end|>``. What the rendered text
then holds of whole control tokens, the template wrote. The marks are taken out again before the text
becomes tokens (``text_encoder.py``), so a mark too many changes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.format.text.template_syntax import TemplateSearches

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]
Span = tuple[int, int]

_PRIVATE = (range(0xE000, 0xF900), range(0x10_0000, 0x10_FFFE))  # characters that mean nothing by themselves
_NAMES = ("role", "type")  # fields that templates compare with words of their own


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation with marks in it; ``mark`` is None where it needs none."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)  # that a request sets for the template
    mark: str | None = None


class ContentMarks:
    """Puts marks into conversations. Safe to use from any thread."""

    def __init__(
        self,
        tokens: Iterable[str],
        roles: Iterable[str] = (),
        found: Callable[[str], Sequence[Span]] | None = None,
    ) -> None:
        """Make the search for ``tokens``.

        Args:
            tokens: the texts of the control tokens.
            roles: those among them that begin and end texts or turns (bos, eos, pad, …).
            found: where the tokenizer itself finds control tokens in a text, for tokenizers that also find
                some that are spelled in another way.
        """
        self._tokens = sorted({token for token in tokens if token})
        self._roles = frozenset(roles)
        self._found = found
        self._longest = max(map(len, self._tokens), default=0)
        lower = [token.lower() for token in self._tokens]
        self._beginnings = sorted(lower)
        self._ends = sorted(token[::-1] for token in lower)
        self._whole = frozenset(lower)
        self._all = "\0".join(lower)
        self._search = _search_for(self._tokens)

    def mark(
        self,
        messages: Sequence[Message],
        tools: Tools | None,
        searches: TemplateSearches,
        variables: Mapping[str, Any] | None = None,
    ) -> Marked:
        """A conversation with marks in every control token that its texts spell.

        What the template ``searches`` assistant turns for stays whole there, since the template is to find
        it, unless a token is in it that begins or ends turns.

        Raises:
            ChatTemplateError: the texts use up every character that could be a mark.
        """
        kept = frozenset(text for text in searches.words if self.spans(text) and not self._has_role(text))
        mark = _free_mark([searches.source, *_texts(messages), *_texts(tools), *_texts(variables)])
        writer = _Writer(self, mark, kept, searches.cuts)
        marked = [
            {key: writer.field(message.get("role"), key, value) for key, value in message.items()}
            for message in messages
        ]
        described = None if tools is None else [writer.value(tool, frozenset()) for tool in tools]
        chosen = {name: writer.value(value, frozenset()) for name, value in (variables or {}).items()}
        return Marked(marked, described, chosen, mark if writer.used else None)

    def _has_role(self, text: str) -> bool:
        return any(role in text for role in self._roles)

    def spans(self, text: str) -> Sequence[Span]:
        """Where ``text`` spells control tokens, whatever the case of their letters."""
        if not self._tokens:
            return ()
        found = list(self._search(text))
        return found if self._found is None else found + list(self._found(text))

    def edges(self, text: str) -> tuple[bool, bool]:
        """Whether a control token could be made by what stands before ``text``, and by what comes after."""
        text = text.lower()
        if text and text not in self._whole and text in self._all:
            return True, True
        sizes = range(1, min(len(text), self._longest - 1) + 1)
        return (
            any(_begins(self._ends, text[:size][::-1]) for size in sizes),
            any(_begins(self._beginnings, text[-size:]) for size in sizes),
        )


class _Writer:
    """Writes the marks of one conversation."""

    def __init__(self, marks: ContentMarks, mark: str, kept: frozenset[str], cuts: frozenset[str]) -> None:
        self._marks = marks
        self._mark = mark
        self._kept = kept
        self._cuts = sorted(cuts)
        self.used = False

    def field(self, role: object, key: str, value: Any) -> Any:
        """One field of a message of ``role``, or of a part of one."""
        kept: frozenset[str] = self._kept if role == "assistant" else frozenset()
        if key in _NAMES:
            return value
        if isinstance(value, str):
            return self._text(value, kept, edges=True)
        if key == "content" and isinstance(value, list | tuple):
            return [self._part(role, part, kept) for part in value]
        return self.value(value, kept)

    def _part(self, role: object, part: Any, kept: frozenset[str]) -> Any:
        if isinstance(part, Mapping):
            return {key: self.field(role, key, value) for key, value in part.items()}
        return self.value(part, kept)

    def value(self, value: Any, kept: frozenset[str]) -> Any:
        """A value of JSON, keys of objects included."""
        if isinstance(value, str):
            return self._text(value, kept, edges=False)
        if isinstance(value, Mapping):
            return {self.value(key, kept): self.value(item, kept) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, kept) for item in value]
        return value

    def _text(self, text: str, kept: frozenset[str], *, edges: bool) -> str:
        marked = self._broken(text, kept)
        if edges:
            marked = self._closed(marked)
        self.used = self.used or marked != text
        return marked

    def _broken(self, text: str, kept: frozenset[str]) -> str:
        """Marks inside control tokens, also inside those that come about when the template cuts a text."""
        for cut in ("", *(cut for cut in self._cuts if cut in text)):
            while places := self._places(text, cut, kept):
                for place in reversed(places):
                    text = text[:place] + self._mark + text[place:]
        return text

    def _places(self, text: str, cut: str, kept: frozenset[str]) -> list[int]:
        """Where marks are missing in ``text`` without all that is ``cut`` out of it."""
        shorter = text.replace(cut, "") if cut else text
        spans = self._marks.spans(shorter)
        if not spans:
            return []
        whole = _occurrences(text, kept)
        origin = _left_over(text, cut) if cut else range(len(text))
        places = set()
        for begin, end in spans:
            start = end - len(shorter[begin:end].lstrip())
            single = end - start == 1
            seen = shorter[max(start - 1, 0) : start] if single else shorter[start:end]
            first, last = origin[start], origin[end - 1]
            if self._mark not in seen and not any(a <= first and last < b for a, b in whole):
                places.add(first + (not single))
        return sorted(places)

    def _closed(self, text: str) -> str:
        """Marks at the ends of a text, and of what a cut leaves of it, that spell a part of a control token.

        What the template writes beside it could complete the token.
        """
        for cut in self._cuts:
            if cut in text:
                text = cut.join(map(self._closed_piece, text.split(cut)))
        return self._closed_piece(text)

    def _closed_piece(self, text: str) -> str:
        stripped = text.strip()
        before, after = self._marks.edges(stripped)
        if not before and not after:
            return text
        start = text.index(stripped)
        end = start + len(stripped)
        return "".join((text[:start], self._mark * before, stripped, self._mark * after, text[end:]))


def without_marks(text: str, mark: str | None) -> str:
    """``text`` as it would be without marks, also where the template escaped them as JSON."""
    if mark is None:
        return text
    return text.replace(mark, "").replace(_escaped(mark), "")


def _escaped(mark: str) -> str:
    """``mark`` in JSON of ASCII."""
    return "".join(f"\\u{int.from_bytes(unit):04x}" for unit in _units(mark))


def _units(mark: str) -> list[bytes]:
    encoded = mark.encode("utf-16-be")
    return [encoded[i : i + 2] for i in range(0, len(encoded), 2)]


def _free_mark(texts: Sequence[str]) -> str:
    """A character of no meaning that is in none of ``texts``, nor escaped in one of them."""
    first = chr(_PRIVATE[0][0])
    if not any(first in text or "\\u" in text for text in texts):
        return first
    used = {character for text in texts for character in set(text)}
    escapes = {int(code, 16) for text in texts for code in re.findall(r"\\u([0-9a-fA-F]{4})", text)}
    for code in (code for block in _PRIVATE for code in block):
        mark = chr(code)
        if mark not in used and escapes.isdisjoint(int.from_bytes(unit) for unit in _units(mark)[-1:]):
            return mark
    raise ChatTemplateError("the messages hold every private-use character: at least one must be left out")


def _texts(value: Any) -> list[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for each in item for text in _texts(each)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def _search_for(tokens: Sequence[str]) -> Callable[[str], list[Span]]:
    """A function that finds ``tokens`` in a text, without regard to case; linear in the text."""
    other = "\0\0"  # stands for all the rest
    searcher = Tokenizer(models.WordLevel({other: 0}, unk_token=other))
    searcher.normalizer = normalizers.Lowercase()
    searcher.add_tokens([AddedToken(token, normalized=True) for token in tokens])

    def search(text: str) -> list[Span]:
        found = searcher.encode(text, add_special_tokens=False)
        return [span for token, span in zip(found.ids, found.offsets, strict=True) if token]

    return search


def _begins(ordered: Sequence[str], beginning: str) -> bool:
    """Whether one of the ``ordered`` texts begins so and goes on."""
    index = bisect_right(ordered, beginning)
    return index < len(ordered) and ordered[index].startswith(beginning)


def _occurrences(text: str, wanted: Iterable[str]) -> list[Span]:
    """Where ``text`` holds one of the ``wanted`` texts."""
    return [(m.start(), m.end()) for each in wanted for m in re.finditer(re.escape(each), text)]


def _left_over(text: str, cut: str) -> list[int]:
    """The places in ``text`` of the characters that are left when ``cut`` is cut out."""
    places: list[int] = []
    start = 0
    for match in re.finditer(re.escape(cut), text):
        places += range(start, match.start())
        start = match.end()
    return [*places, *range(start, len(text))]
