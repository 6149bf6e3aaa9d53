"""Which tokenizer and chat template a request is read and answered with: the base's or an adapter's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cachetools import LRUCache

from manylora.adapters.errors import ArtifactError, ChatTemplateError, MixError
from manylora.adapters.format.answers.syntax import AnswerFormat
from manylora.adapters.format.classes import Classes, read_classes
from manylora.adapters.format.config.soft_prompts import virtual_tokens
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.files import (
    CONFIG_NAME,
    FileFault,
    classifies,
    embeds,
    read_config,
    read_text_files,
)
from manylora.adapters.format.pooling import PoolingConfig, parse_pooling
from manylora.adapters.format.text.content_marks import Marked
from manylora.adapters.format.text.conventions import AdapterText, BaseText
from manylora.adapters.format.text.read_text import read_text
from manylora.adapters.format.text.template_syntax import TemplateSearches
from manylora.server.errors import RequestError
from manylora.server.model.text.templates import Conversation, TemplateProcesses
from manylora.server.model.text.tokenizer import Tokenizer

V = TypeVar("V")

_MAX_TEXTS = 1024  # revisions whose files have been read
_MAX_TOKENIZERS = 8  # that are not the base's; tens of megabytes each
_INLINE_CHARS = 20_000  # rendered and tokenized in under some 10 ms; more goes to a thread


@dataclass(frozen=True, slots=True)
class MixMember:
    """A revision in a mix, which may bring a chat template, a tokenizer and class labels of its own."""

    label: str  # "support@3f9a1c2e"
    digest: str


@dataclass(frozen=True)
class TextConventions:
    """By what the text of one request is read and written: tokenizer, chat template, class labels."""

    tokenizer: Tokenizer
    template: Callable[[Conversation], Awaitable[str]] | None = None  # None: the one in ``tokenizer``
    searches: TemplateSearches | None = None  # of that template
    conflict: str | None = None  # why the mix has no chat template
    classes: Classes | None = None  # of an adapter that answers with the probabilities of labels instead
    virtual_tokens: int = 0  # that the soft prompt of a member takes of the context
    prompt: MixMember | None = None  # the member that brings it
    embeds: bool = False  # a member was trained to embed texts, not to write any
    poolings: tuple[tuple[str, PoolingConfig], ...] = ()  # of members that say how they embed, by label
    answers: AnswerFormat = field(default_factory=AnswerFormat)  # how calls and reasoning are written
    answers_conflict: str | None = None  # why the mix has no such format

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text, written by the chat template, which may read ``variables``.

        Raises:
            RequestError: there is no template, or it rejects the messages, or takes too long.
            MixError: the members of the mix bring different ones.
        """
        if self.conflict is not None:
            raise MixError(self.conflict)
        if self.template is None:
            return await off_loop(
                _size(messages, tools),
                lambda: self.tokenizer.render_chat(
                    messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
                ),
            )
        read = {**(variables or {}), **self.tokenizer.special_tokens}
        return await self.template(Conversation(messages, read, tools, add_generation_prompt))

    async def mark(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Marked:
        """A conversation in which control tokens that its content spells are marked, to be rendered.

        Raises:
            RequestError: there is no character left to mark with.
        """
        mark, size = self.tokenizer.mark, _size(messages, tools)
        return await off_loop(
            size, lambda: mark(messages, tools, searches=self.searches, variables=variables)
        )

    async def encode_rendered(self, text: str, mark: str | None) -> tuple[int, ...]:
        """Token ids of a rendered conversation; only what the template wrote becomes control tokens.

        Raises:
            RequestError: content can't be written without control tokens.
        """
        encode = self.tokenizer.encode_rendered
        return tuple(await off_loop(len(text), lambda: encode(text, mark)))

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of ``text``."""
        encode = self.tokenizer.encode
        return tuple(await off_loop(len(text), lambda: encode(text, add_special_tokens=add_special_tokens)))


class ConventionsCache:
    """Finds the text conventions of the base and of mixes; files are read when first asked for, and kept.

    A mix uses what its members bring. Members that bring nothing do not count;
    where two bring different tokenizers, or different templates, neither is chosen and the request fails.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        processes: TemplateProcesses,
        locate: Callable[[str], Path],
        pad_id: int | None = None,
    ) -> None:
        """``locate`` finds the directory of a revision by digest; ``pad_id`` is the base's padding."""
        self._tokenizer = tokenizer
        self._base = tokenizer.base_text()
        self._base.prepare()
        self._processes = processes
        self._locate = locate
        self._pad_id = pad_id
        self._texts: LRUCache[str, _Text] = LRUCache(_MAX_TEXTS)
        self._tokenizers: LRUCache[Hashable, Tokenizer] = LRUCache(_MAX_TOKENIZERS)

    @property
    def base(self) -> TextConventions:
        """The text conventions of the base model."""
        return TextConventions(self._tokenizer, answers=self._base.answers)

    def unread(self, digests: Iterable[str]) -> set[str]:
        """The revisions of ``digests`` whose files :meth:`of` would have to read."""
        return {digest for digest in digests if self._texts.get(digest) is None}

    async def of(self, members: Sequence[MixMember]) -> TextConventions:
        """The text conventions of a mix.

        Raises:
            MixError: two members bring different tokenizers or a soft prompt each, one of several classifies,
                or an aLoRA stands beside a soft prompt.
            AdapterError: the files of a member can't be read.
        """
        texts = [await self._text(member) for member in members]
        classifier = next((text for text in texts if text.classes is not None), None)
        if classifier is not None and len(texts) > 1:
            raise MixError(f"{classifier.member.label!r} classifies, so it can't be part of a mix")
        prompt = _soft_prompt(texts)
        tokenizer, clash = _one(texts, lambda text: text.tokenizer)
        if clash is not None:
            raise MixError(f"{clash} bring different tokenizers, so their mix can't read text")
        template, clash = _one(texts, lambda text: text.template_digest)
        conflict = None
        if clash is not None:
            conflict = f"{clash} bring different chat templates: use /v1/completions for their mix"
        answers, answers_conflict = self._answers(texts)
        return TextConventions(
            self._tokenizer if tokenizer is None else await self._tokenizer_of(tokenizer),
            None if template is None else self._template_of(template),
            None if template is None else template.searches,
            conflict,
            None if classifier is None else classifier.classes,
            0 if prompt is None else prompt.virtual_tokens,
            None if prompt is None else prompt.member,
            any(text.embeds for text in texts),
            tuple((text.member.label, text.pooling) for text in texts if text.pooling is not None),
            answers,
            answers_conflict,
        )

    def _answers(self, texts: Sequence[_Text]) -> tuple[AnswerFormat, str | None]:
        """How a mix writes answers, and why it has no such format where its members differ."""
        own, clash = _one(texts, lambda text: None if text.answers is None else text.answers.digest)
        if clash is not None:
            return AnswerFormat(), f"{clash} write calls of tools and reasoning in different formats"
        return (self._base.answers if own is None or own.answers is None else own.answers), None

    async def close(self) -> None:
        """End the processes that render."""
        await self._processes.close()

    async def _text(self, member: MixMember) -> _Text:
        text = self._texts.get(member.digest)
        if text is None:
            files = await asyncio.to_thread(_read, self._locate(member.digest), self._base)
            read, classes, config = files.text, files.classes, files.config
            if classes is not None and classes.pad_id is None:
                classes = replace(classes, pad_id=self._pad_id)
            text = _Text(
                member,
                read.template,
                read.searches,
                read.template_digest,
                read.tokenizer_digest,
                classes,
                virtual_tokens(config),
                config.get("alora_invocation_tokens") is not None,
                embeds(config),
                read.answers,
                files.pooling,
            )
            self._texts[member.digest] = text
        return replace(text, member=member)

    async def _tokenizer_of(self, text: _Text) -> Tokenizer:
        tokenizer = self._tokenizers.get(text.tokenizer)
        if tokenizer is None:
            read = await asyncio.to_thread(_read, self._locate(text.member.digest), self._base)
            tokenizer = await asyncio.to_thread(self._tokenizer.with_text, read.text)
            self._tokenizers[text.tokenizer] = tokenizer
        return tokenizer

    def _template_of(self, text: _Text) -> Callable[[Conversation], Awaitable[str]]:
        label, template, digest = text.member.label, text.template, text.template_digest
        assert template is not None
        assert digest is not None

        async def render(conversation: Conversation) -> str:
            try:
                return await self._processes.render(digest, template, conversation)
            except ChatTemplateError as error:
                message = f"the chat template of {label} rejects these messages: {error}"
                raise RequestError(message, "messages", "chat_template_failed") from error

        return render


@dataclass(frozen=True, slots=True)
class _Text:
    """The text files of one revision; None where it uses the base's."""

    member: MixMember
    template: str | None
    searches: TemplateSearches | None  # of its template
    template_digest: str | None
    tokenizer: str | None  # its digest
    classes: Classes | None
    virtual_tokens: int  # of its soft prompt
    activates: bool  # it is an aLoRA
    embeds: bool  # its task is to embed texts
    answers: AnswerFormat | None = None  # how it writes answers
    pooling: PoolingConfig | None = None  # how it embeds, where it says so


@dataclass(frozen=True, slots=True)
class _Read:
    """What the files of one revision say."""

    text: AdapterText
    classes: Classes | None
    pooling: PoolingConfig | None
    config: Mapping[str, Any]


def _read(directory: Path, base: BaseText) -> _Read:
    faults = Faults()
    try:
        config = read_config(directory / CONFIG_NAME)
        files = read_text_files(directory, config)
        pooling = parse_pooling(files)
    except FileFault as fault:
        raise ArtifactError([str(fault)]) from None
    text = read_text(files, base, None, faults)
    classes = read_classes(files, faults) if classifies(config) else None
    faults.raise_any()
    return _Read(text, classes, pooling, config)


def _soft_prompt(texts: Sequence[_Text]) -> _Text | None:
    """The member that brings a soft prompt, if one does.

    Raises:
        MixError: two do, or it has no place beside another.
    """
    prompts = [text for text in texts if text.virtual_tokens]
    if not prompts:
        return None
    label = f"{prompts[0].member.label!r}"
    if len(prompts) > 1:
        raise MixError(f"{label} and {prompts[1].member.label!r} both put virtual tokens before the text")
    other = next((text for text in texts if text.activates), None)
    if other is not None:
        raise MixError(
            f"{other.member.label!r} is an aLoRA: it is not served beside virtual tokens ({label})"
        )
    return prompts[0]


def _one(texts: Sequence[_Text], key: Callable[[_Text], str | None]) -> tuple[_Text | None, str | None]:
    """The first member with something of its own, and that with another's name where theirs differ."""
    own = [text for text in texts if key(text) is not None]
    other = next((text for text in own if key(text) != key(own[0])), None)
    clash = None if other is None else f"{own[0].member.label!r} and {other.member.label!r}"
    return own[0] if own else None, clash


def _size(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> int:
    return sum(len(str(message.get("content"))) for message in messages) + len(str(tools))


async def off_loop(chars: int, work: Callable[[], V]) -> V:
    """Do ``work`` on ``chars`` characters: at once, or in a thread if that would take long."""
    return work() if chars <= _INLINE_CHARS else await asyncio.to_thread(work)
