"""The base's tokenizer with an adapter's tokens: it shares the model, so it takes little time and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from manylora.adapters.format.text.conventions import AdapterText
from manylora.adapters.format.text.shared_model import added_tokens, part_from_json, with_added_tokens


class ExtendedTokenizer:
    """What serving uses of a Hugging Face tokenizer, for an adapter's."""

    is_fast = True

    def __init__(self, base: Any, text: AdapterText) -> None:
        """``base``: the base's, as transformers holds it; ``text``: what the adapter brings."""
        self._base = base
        self.special_tokens_map: Mapping[str, str] = (
            dict(base.special_tokens_map) if text.special is None else text.special
        )
        self.backend_tokenizer = _backend(base.backend_tokenizer, text, self.special_tokens_map.values())
        eos = self.special_tokens_map.get("eos_token")
        self.eos_token_id = None if eos is None else self.backend_tokenizer.token_to_id(eos)
        named = {self.backend_tokenizer.token_to_id(token) for token in self.special_tokens_map.values()}
        self.all_special_ids = sorted({*base.all_special_ids, *named} - {None})

    @property
    def chat_template(self) -> Any:
        """The base's: an adapter's own is rendered elsewhere."""
        return self._base.chat_template

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """As the base's, with the adapter's special tokens."""
        return self._base.apply_chat_template(messages, **{**self.special_tokens_map, **options})


def _backend(base: Any, text: AdapterText, special: Any) -> Any:
    """The base's tokenizer with all added tokens of the adapter, those that are special flagged so."""
    parts: dict[str, Any] = {}
    if text.tokenizer is None:
        tokens = list(added_tokens(base).values())
    else:
        tokens = [_token(fields) for fields in text.tokenizer.added_tokens]
        if text.tokenizer.post_processor is not None:
            section = json.loads(text.tokenizer.post_processor)
            parts["post_processor"] = part_from_json("post_processor", section)
    flagged = set(special)
    known = {token.content for token in tokens}
    tokens = [_special(token) if token.content in flagged else token for token in tokens]
    tokens += [AddedToken(content, special=True) for content in sorted(flagged - known)]
    return with_added_tokens(base, tokens, **parts)


def _token(fields: Mapping[str, Any]) -> AddedToken:
    return AddedToken(**{name: value for name, value in fields.items() if name != "id"})


def _special(token: AddedToken) -> AddedToken:
    """``token``, flagged as special."""
    if token.special:
        return token
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )
