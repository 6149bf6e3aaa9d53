"""Text to token ids and back: what serving needs beside the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.content_marks import Marked, Message, Tools
from manylora.adapters.format.text.conventions import AdapterText, BaseText
from manylora.adapters.format.text.template_syntax import TemplateSearches
from manylora.server.errors import ModelRefused, RequestError
from manylora.server.model.text.extended_tokenizer import ExtendedTokenizer


class Tokenizer:
    """A Hugging Face fast tokenizer behind the few calls that serving needs. Safe to use from any thread."""

    def __init__(self, hf: Any, extra_eos: Sequence[int] = ()) -> None:
        if not getattr(hf, "is_fast", False):
            raise ModelRefused(f"{type(hf).__name__} is not a fast tokenizer (no tokenizer.json)")
        self._chat = ChatTokenizer(hf)
        self._hf = hf
        self._backend = hf.backend_tokenizer
        self._special = frozenset(hf.all_special_ids)
        added = self._backend.get_added_tokens_decoder()
        self.skipped_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        self._skipped = frozenset(self.skipped_tokens.values())
        own = () if hf.eos_token_id is None else (hf.eos_token_id,)
        self.eos_ids = frozenset((*own, *extra_eos))
        self.vocab_size: int = len(hf)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model brings a chat template."""
        return self._chat.has_chat_template

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens by role: "eos_token" -> "</s>"."""
        return self._chat.special_tokens

    def base_text(self) -> BaseText:
        """The base model's tokenizer and template, which those of adapters are compared with."""
        return self._chat.base_text()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; special tokens written out in it are recognized."""
        return self._chat.encode(text, add_special_tokens=add_special_tokens)

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation. The template writes its own special tokens, so none are added.

        Raises:
            RequestError: the model has no template, or the template rejects the messages.
        """
        self._need_template()
        with _refused_messages():
            return self._chat.encode_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def mark(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        searches: TemplateSearches | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Marked:
        """A conversation with marks in the control tokens that its content spells.

        ``searches``: what the template that renders it looks for; None: it is the model's own.

        Raises:
            RequestError: there is no character left to mark with.
        """
        with _refused_messages():
            return self._chat.mark(messages, tools, searches=searches, variables=variables)

    def encode_rendered(self, text: str, mark: str | None) -> list[int]:
        """Token ids of a rendered conversation; only what the template wrote becomes control tokens.

        Raises:
            RequestError: content can't be written without control tokens.
        """
        with _refused_messages():
            return self._chat.encode_rendered(text, mark)

    @classmethod
    def load(cls, directory: Path, extra_eos: Sequence[int] = ()) -> Tokenizer:
        """The tokenizer in a model directory. ``extra_eos``: end tokens of the generation config."""
        return cls(AutoTokenizer.from_pretrained(directory), extra_eos)

    def to_json(self) -> str:
        """The tokenizer as tokenizer.json has it, without what batches need."""
        if self._backend.padding is None and self._backend.truncation is None:
            return self._backend.to_str()  # type: ignore[no-any-return]
        return json.dumps({**json.loads(self._backend.to_str()), "padding": None, "truncation": None})

    @property
    def added_tokens(self) -> dict[int, str]:
        """Ids and texts of the tokens that stand beside the vocabulary."""
        return {token: each.content for token, each in self._backend.get_added_tokens_decoder().items()}

    @property
    def control_tokens(self) -> dict[int, str]:
        """Ids and names of the added tokens that stand for no text, by flag or by the form of their name."""
        added = self._backend.get_added_tokens_decoder()
        return {
            token: each.content
            for token, each in added.items()
            if each.special or (each.content.startswith("<") and each.content.endswith(">"))
        }

    def with_text(self, text: AdapterText) -> Tokenizer:
        """The tokenizer of an adapter on this base, with the base's template."""
        if text.tokenizer is None and text.special is None:
            return self
        return Tokenizer(ExtendedTokenizer(self._hf, text), sorted(self.eos_ids))

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> str:
        """Text of ``token_ids``; bytes that are no complete character come out as U+FFFD.

        With ``skip_special_tokens`` control tokens are left out, but those that are ``shown``.
        """
        if skip_special_tokens and shown:
            token_ids = [token for token in token_ids if token in shown or token not in self._skipped]
            skip_special_tokens = False
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)  # type: ignore[no-any-return]

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def token_text(self, token_id: int) -> str:
        """Text of one token alone, special tokens written out."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, exact also for a part of a character in byte-level vocabularies."""
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if not self.is_special(token_id):
            if len(piece) == 6 and piece.startswith("<0x"):  # SentencePiece byte fallback
                return bytes([int(piece[3:5], 16)])
            if all(c in _BYTE_OF for c in piece) and "�" in self.token_text(token_id):
                return bytes(_BYTE_OF[c] for c in piece)
        return self.token_text(token_id).encode()

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """``messages`` as text through the model's chat template, which may read ``variables``.

        Raises:
            RequestError: the model has no template, or the template rejects the messages.
        """
        self._need_template()
        with _refused_messages():
            return self._chat.render_chat(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
            )

    def _need_template(self) -> None:
        if not self.has_chat_template:
            raise RequestError("this model has no chat template; use /v1/completions", "messages")


@contextmanager
def _refused_messages() -> Iterator[None]:
    """What a template refuses is the fault of the request's messages."""
    try:
        yield
    except ChatTemplateError as error:
        raise RequestError(str(error), "messages") from error


def _byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    missing = (b for b in range(256) if b not in set(printable))
    table.update({chr(0x100 + i): b for i, b in enumerate(missing)})
    return table


_BYTE_OF: Mapping[str, int] = _byte_alphabet()
