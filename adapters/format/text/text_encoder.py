"""Rendered conversations to token ids: control tokens come from the template alone.

A second tokenizer reads what has marks in it (``content_marks.py``). It shares the first one's model, knows
no control token by its text, and knows each by a secret name instead. In the rendered text the template's
control tokens are replaced by those names and the marks are taken out; then one encoding makes all of it, so
that what stands beside a control token is read as it always is.
"""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, models

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.format.text.content_marks import Span, without_marks
from manylora.adapters.format.text.shared_model import added_tokens, with_added_tokens

_FILLER = "".join(map(chr, range(0xF0000, 0xF0008)))  # the beginning of tokens that only take up ids


class TextEncoder:
    """Encodes rendered conversations with one tokenizer. Safe to use from any thread."""

    def __init__(self, backend: Any) -> None:
        """``backend``: a ``tokenizers.Tokenizer``, which is not changed afterwards."""
        self._backend = backend
        self._model = backend.model
        added = added_tokens(backend)
        self.control = {token_id: token.content for token_id, token in added.items() if token.special}
        self._normalized = frozenset(i for i, token in added.items() if token.special and token.normalized)
        nonce = "".join(chr(0xF0000 + secrets.randbelow(0xF000)) for _ in range(8))  # nobody can write it
        self._names = {token_id: nonce + _numeral(token_id) for token_id in self.control}
        plain = [token for token in added.values() if not token.special]
        names = [AddedToken(name, normalized=False, special=False) for name in self._names.values()]
        self._twin = _beside(backend, [*plain, *names])
        real = {token.content: token_id for token_id, token in added.items()}
        real |= {name: token_id for token_id, name in self._names.items()}
        twins = added_tokens(self._twin)
        self._real = {i: real[token.content] for i, token in twins.items() if token.content in real}
        self._unknown = frozenset(_unknown_ids(self._model)) & self.control.keys()
        self._spelled: dict[int, list[int]] = {}

    @cached_property
    def careful(self) -> bool:
        """Whether control tokens can also be made by texts that don't spell them exactly.

        Where they are matched after a text was normalized, and where the model itself has them as pieces.
        """
        return bool(self._normalized) or any(
            self._ids_of(text) == [token_id] for token_id, text in self.control.items()
        )

    def spans(self, text: str) -> list[Span]:
        """Where ``text`` makes control tokens, unknown characters aside."""
        found = self._backend.encode(text, add_special_tokens=False)
        return [
            (start, end)
            for token_id, (start, end) in zip(found.ids, found.offsets, strict=True)
            if token_id in self.control and self._is_meant(token_id, text[start:end])
        ]

    def encode(self, text: str, mark: str | None) -> list[int]:
        """The ids of a rendered conversation with marks in it; None: it has none.

        Raises:
            ChatTemplateError: content spells a control token that the vocabulary has no other tokens for.
        """
        if mark is None and not self.careful:
            return self._backend.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]
        named = self._named(text, mark)
        found = self._twin.encode(named, add_special_tokens=False)
        ids: list[int] = []
        for token_id, (start, end) in zip(found.ids, found.offsets, strict=True):
            if token_id in self._real:
                ids.append(self._real[token_id])
            elif token_id in self.control and self._is_meant(token_id, named[start:end]):
                ids += self._spell(token_id)
            else:
                ids.append(token_id)
        return ids

    def _named(self, text: str, mark: str | None) -> str:
        """``text`` without marks, and with the template's control tokens by their names."""
        found = self._backend.encode(text, add_special_tokens=False)
        parts: list[str] = []
        at = 0
        for token_id, (start, end) in zip(found.ids, found.offsets, strict=True):
            if token_id in self.control and self._is_templates(text, start, end, token_id, mark):
                parts += (without_marks(text[at:start], mark), self._names[token_id])
                at = end
        return "".join((*parts, without_marks(text[at:], mark)))

    def _is_templates(self, text: str, start: int, end: int, token_id: int, mark: str | None) -> bool:
        spelled, token = text[start:end], self.control[token_id]
        if mark is not None and (mark in spelled or (len(token) == 1 and text[:start].endswith(mark))):
            return False
        return token_id in self._normalized or spelled.strip() == token.strip()

    def _is_meant(self, token_id: int, spelled: str) -> bool:
        """Whether it is the token, not the token of an unknown character."""
        return token_id not in self._unknown or self.control[token_id] in spelled

    def _spell(self, token_id: int) -> list[int]:
        """A control token as the text of its name, in other tokens."""
        if token_id not in self._spelled:
            self._spelled[token_id] = self._pieces(self.control[token_id])
        return self._spelled[token_id]

    def _pieces(self, text: str) -> list[int]:
        """The ids of ``text``, read in two parts where it is a control token as one."""
        for cut in range(1, len(text)):
            ids = self._ids_of(text[:cut]) + self._ids_after(text[cut:])
            if ids and self.control.keys().isdisjoint(ids):
                return ids
        characters = [self._id_of_bytes(character) for character in text]
        if all(characters):
            return [token_id for ids in characters for token_id in ids]
        if self._unknown:
            return [min(self._unknown)]
        raise ChatTemplateError(f"the vocabulary can write {text!r} only as a control token")

    def _ids_of(self, text: str) -> list[int]:
        try:
            return [token.id for token in self._model.tokenize(text)]
        except Exception:  # a model without a token for unknown characters
            return []

    def _ids_after(self, text: str) -> list[int]:
        """The ids of ``text`` where it goes on within a word."""
        if not isinstance(self._model, models.WordPiece):
            return self._ids_of(text)
        prefix = self._model.continuing_subword_prefix
        ids = [self._model.token_to_id(prefix + character) for character in text]
        return [] if None in ids else ids

    def _id_of_bytes(self, text: str) -> list[int]:
        ids = [self._model.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
        return [] if None in ids else ids


def _beside(backend: Any, tokens: list[AddedToken]) -> Any:
    """A tokenizer with other added ``tokens``, none of them under an id that the model uses."""
    made = with_added_tokens(backend, tokens)
    known = {token.content for token in tokens if backend.model.token_to_id(token.content) is not None}
    ids = [i for i, token in added_tokens(made).items() if token.content not in known]
    if any(backend.model.id_to_token(i) is not None for i in ids):  # its ids have gaps
        top = max(backend.get_vocab(with_added_tokens=False).values())
        gaps = [AddedToken(f"{_FILLER}{i}", normalized=False) for i in range(top + 1 - ids[0])]
        made = with_added_tokens(backend, [*gaps, *tokens])
    return made


def _unknown_ids(model: Any) -> list[int]:
    """The ids that stand for a character that no vocabulary has."""
    try:
        tokens = model.tokenize("\U000ffffd")
    except Exception:  # it has none
        return []
    return [token.id for token in tokens] if len(tokens) == 1 else []


def _numeral(number: int) -> str:
    """``number`` in three characters of no meaning."""
    return "".join(chr(0x100000 + (number >> shift & 0xFFF)) for shift in (24, 12, 0))
