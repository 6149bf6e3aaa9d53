"""Log-probabilities in the shapes of the two endpoints."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from manylora.server.engine.sequence import TokenLogprob
from manylora.server.model.text.tokenizer import Tokenizer

FLOOR = -9999.0  # stands for minus infinity, which JSON has not


def token_name(tokenizer: Tokenizer, token_id: int, *, as_ids: bool) -> str:
    """What log-probabilities call a token: its text, or its id as vLLM spells it."""
    return f"token_id:{token_id}" if as_ids else tokenizer.token_text(token_id)


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], *, as_ids: bool = False
) -> dict[str, Any]:
    """The ``logprobs`` object of a chat choice; ``as_ids`` as in :func:`token_name`."""

    def told(token_id: int, logprob: float) -> dict[str, Any]:
        return _chat_entry(tokenizer, token_id, logprob, as_ids=as_ids)

    content = [
        {**told(entry.token_id, entry.logprob), "top_logprobs": [told(*top) for top in entry.top]}
        for entry in logprobs
    ]
    return {"content": content, "refusal": None}


def _chat_entry(tokenizer: Tokenizer, token_id: int, logprob: float, *, as_ids: bool) -> dict[str, Any]:
    return {
        "token": token_name(tokenizer, token_id, as_ids=as_ids),
        "logprob": max(logprob, FLOOR),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None]
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's ``prompt_logprobs``: of each token the likeliest ones and itself, by id; null for the first."""
    return [None if entry is None else _ranked(tokenizer, entry) for entry in entries]


def _ranked(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, dict[str, Any]]:
    """The rank of a token that is not among the likeliest is not known: null."""
    top = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, start=1)}
    known: dict[int, tuple[float, int | None]] = {entry.token_id: (entry.logprob, None), **top}
    return {
        str(token_id): {
            "logprob": max(logprob, FLOOR),
            "rank": rank,
            "decoded_token": tokenizer.token_text(token_id),
        }
        for token_id, (logprob, rank) in known.items()
    }


class CompletionLogprobs:
    """The ``logprobs`` object of one completion choice, built token by token.

    ``text_offset`` counts characters from the start of the choice's text (its echoed prompt included),
    over all tokens: a character's offset is that of the token which completes it.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, as_ids: bool = False) -> None:
        self.tokenizer = tokenizer
        self.as_ids = as_ids  # see token_name
        self.skip_special_tokens = skip_special_tokens  # such tokens have no place in the text
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.offset = 0

    def take(self, entries: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, Any]:
        """The object for the next ``entries``: token ids, each with its log-probability if it has one."""
        return {
            "tokens": [self._name(token_id) for token_id, _ in entries],
            "token_logprobs": [None if entry is None else max(entry.logprob, FLOOR) for _, entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for _, entry in entries],
            "text_offset": [self._advance(token_id) for token_id, _ in entries],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the chosen one. Of tokens with the same text the likeliest counts."""
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            text = self._name(token_id)
            top[text] = max(top.get(text, FLOOR), logprob)
        return top

    def _name(self, token_id: int) -> str:
        return token_name(self.tokenizer, token_id, as_ids=self.as_ids)

    def _advance(self, token_id: int) -> int:
        offset = self.offset
        if not (self.skip_special_tokens and self.tokenizer.is_special(token_id)):
            self.offset += len(self.decoder.decode(self.tokenizer.token_bytes(token_id)))
        return offset


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One ``logprobs`` object out of consecutive ones (of either endpoint)."""
    first = parts[0] if parts else {}
    return {
        key: [item for part in parts for item in part[key]] if isinstance(first[key], list) else first[key]
        for key in first
    }
