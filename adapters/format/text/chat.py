"""Conversations to text and token ids: the one template that serves and trains.

A prompt of the server and a row of the trainer go through the functions here and through nothing else, so
that an adapter meets the tokens it was trained on. Knows neither requests nor training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.format.text.content_marks import ContentMarks, Marked, Message, Tools
from manylora.adapters.format.text.conventions import BaseText
from manylora.adapters.format.text.template_syntax import TemplateSearches, find_searches
from manylora.adapters.format.text.text_encoder import TextEncoder


class ChatTokenizer:
    """A Hugging Face fast tokenizer with its chat template. Safe to use from any thread."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._backend = hf.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    @property
    def has_chat_template(self) -> bool:
        return self._hf.chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; special tokens written out in it are recognized."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids  # type: ignore[no-any-return]

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens by role: "eos_token" -> "</s>"."""
        return {k: v for k, v in self._hf.special_tokens_map.items() if isinstance(v, str)}

    def base_text(self) -> BaseText:
        """The base model's tokenizer and template, which those of adapters are compared with."""
        return self._base_text

    @cached_property
    def _base_text(self) -> BaseText:
        return BaseText(
            template=_single(self._hf.chat_template),
            special=self.special_tokens,
            load=self._backend.to_str,
            response_template=getattr(self._hf, "response_template", None),
        )

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """``messages`` as text through the chat template, which may read ``variables``.

        Raises:
            ChatTemplateError: there is no template, or it rejects the messages.
        """
        if not self.has_chat_template:
            raise ChatTemplateError("this model has no chat template")
        try:
            text = self._hf.apply_chat_template(
                list(messages),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **(variables or {}),
            )
        except Exception as error:  # a template is a program that runs on the messages: it raises anything
            raise ChatTemplateError(f"the chat template rejects these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def mark(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        *,
        searches: TemplateSearches | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Marked:
        """A conversation with marks in the control tokens that its content spells.

        ``searches``: what the template that renders it looks for; None: it is the tokenizer's own.

        Raises:
            ChatTemplateError: there is no character left to mark with.
        """
        chosen = self._searches if searches is None else searches
        return self._marks.mark(messages, tools, chosen, variables)

    def encode_rendered(self, text: str, mark: str | None) -> list[int]:
        """Token ids of a rendered conversation; only what the template wrote becomes control tokens.

        ``mark``: by which content is told from template, as :meth:`mark` chose it.

        Raises:
            ChatTemplateError: content can't be written without control tokens.
        """
        return self._encoder.encode(text, mark)

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation; control tokens come from the template alone.

        Raises:
            ChatTemplateError: there is no template, or it rejects the messages.
        """
        marked = self.mark(messages, tools)
        text = self.render_chat(
            marked.messages, tools=marked.tools, add_generation_prompt=add_generation_prompt
        )
        return self.encode_rendered(text, marked.mark)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self._backend)

    @cached_property
    def _marks(self) -> ContentMarks:
        encoder = self._encoder
        roles = [text for text in self.special_tokens.values() if text]
        return ContentMarks(encoder.control.values(), roles, encoder.spans if encoder.careful else None)

    @cached_property
    def _searches(self) -> TemplateSearches:
        return find_searches(_single(self._hf.chat_template) or "")


def _single(template: str | dict[str, str] | None) -> str | None:
    """The template that renders: of several, the default one."""
    return template.get("default") if isinstance(template, dict) else template


def join_parts(texts: Sequence[str]) -> str:
    """The text parts of one message as a template sees them: one string, parts joined by line breaks."""
    return "\n".join(texts)


def template_message(role: str, content: str, **fields: Any) -> dict[str, Any]:
    """One message as a template sees it; ``developer`` is the newer name of ``system``."""
    return {"role": "system" if role == "developer" else role, "content": content, **fields}
