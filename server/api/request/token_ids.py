"""From messages and prompts to token ids, off the event loop when they are long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from fastapi import Request

from manylora.adapters.format.answers.syntax import ReasoningSyntax
from manylora.adapters.format.text.content_marks import Marked
from manylora.server.api.access.scopes import ADMIN, caller_scope
from manylora.server.api.request.schemas import Message, Prompt
from manylora.server.api.request.truncation import Truncation
from manylora.server.assembly import CHARS_PER_TOKEN
from manylora.server.errors import AdminKeyNeeded, ContextTooLong, RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import Service

Conversation = Sequence[Mapping[str, Any]]  # messages as the template sees them
Tools = Sequence[Mapping[str, Any]]  # as it sees them, too

_SPECIAL = "allow_special_tokens"

# Fields of messages that a template may have no place for; without one they change nothing.
_OPTIONAL = ("name", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a request says of how its conversation is written."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    # The request's parameter -> the template's variables that it sets.
    variables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Of parameters that are refused where the template knows nothing of them: what would say the opposite.
    opposites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    special_tokens: bool | None = None  # whether messages may spell control tokens; None: as configured
    tools: Tools | None = None  # that the model hears of

    async def render(self, conventions: TextConventions, messages: Conversation, ignored: list[str]) -> str:
        """``messages`` as text.

        Args:
            conventions: the template.
            messages: as the template sees them.
            ignored: takes the paths of fields that the template has no place for.

        Raises:
            RequestError: the template refuses the messages, or leaves out what would be missed.
            MixError: the members of the mix bring different templates.
        """
        text = await self._text(conventions, messages)
        if self.tools is not None and await replace(self, tools=None)._same(conventions, messages, text):
            raise _no_place("tools", "tools")
        await self._check_calls(conventions, messages, text)
        for name in _OPTIONAL:
            holders = [index for index, message in enumerate(messages) if name in message]
            if holders and await self._same(conventions, _without(messages, name), text):
                ignored.extend(f"messages[{index}].{name}" for index in holders)
        for param in self.variables:
            others = {key: value for key, value in self.variables.items() if key != param}
            if await self._same(conventions, messages, text, others):
                opposite = self.opposites.get(param)
                if opposite is None:
                    ignored.append(param)
                elif await self._same(conventions, messages, text, {**others, param: opposite}):
                    raise _no_place(param, "it")
        return await self._continued(conventions, messages) if self.continue_final_message else text

    async def _text(
        self,
        conventions: TextConventions,
        messages: Conversation,
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        chosen = self.variables if variables is None else variables
        return await conventions.render(
            messages,
            tools=self.tools,
            add_generation_prompt=self.add_generation_prompt and not self.continue_final_message,
            variables={name: value for each in chosen.values() for name, value in each.items()},
        )

    async def _same(
        self,
        conventions: TextConventions,
        messages: Conversation,
        text: str,
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> bool:
        """Whether the template writes ``text`` for these messages and variables, too."""
        try:
            return await self._text(conventions, messages, variables) == text
        except RequestError:  # it misses what was left out
            return False

    async def _check_calls(self, conventions: TextConventions, messages: Conversation, text: str) -> None:
        """Refuse calls of tools, and their results, that the template would leave out."""
        calls = [index for index, message in enumerate(messages) if "tool_calls" in message]
        if calls and await self._same(conventions, _without(messages, "tool_calls"), text):
            raise _no_place(f"messages[{calls[0]}].tool_calls", "tool calls")
        results = [index for index, message in enumerate(messages) if message["role"] == "tool"]
        if not results:
            return
        others = [message for message in messages if message["role"] != "tool"]
        if await self._same(conventions, others, text):
            raise _no_place(f"messages[{results[0]}].role", "results of tools")

    async def _continued(self, conventions: TextConventions, messages: Conversation) -> str:
        """The text up to the end of the last message's content, whatever the template writes behind it."""
        *before, last = messages
        if not last["content"] or "tool_calls" in last:
            param = f"messages[{len(before)}].content"
            raise RequestError("'continue_final_message' needs a last message with text to go on with", param)
        mark = uuid4().hex  # in no text that anybody has sent
        text = await self._text(conventions, [*before, {**last, "content": last["content"] + mark}])
        end = text.rfind(mark)
        if end < 0:
            raise RequestError(
                "'continue_final_message' is not supported: the chat template leaves the last message out",
                "continue_final_message",
                "unsupported_parameter",
            )
        return text[:end]


def check_special_tokens(request: Request, wanted: bool | None, with_messages: bool = True) -> None:
    """Refuse ``allow_special_tokens`` where it has no meaning, and from callers who may not ask for it.

    Raises:
        RequestError: the request has no messages.
        AdminKeyNeeded: it takes an admin key.
    """
    if wanted is not None and not with_messages:
        raise RequestError(f"'{_SPECIAL}' goes with 'messages': a prompt's are recognized anyway", _SPECIAL)
    if wanted and caller_scope(request.scope) < ADMIN:
        raise AdminKeyNeeded(f"'{_SPECIAL}' may only be set with an admin key")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation."""

    ids: tuple[int, ...]
    in_reasoning: bool = False  # it ends within a block of reasoning

    def cut(self, truncation: Truncation, most: int) -> ChatPrompt:
        """As ``truncation`` wants it, where at most ``most`` tokens fit."""
        ids = truncation.cut(self.ids, most)
        ends_elsewhere = len(ids) < len(self.ids) and not truncation.end
        return ChatPrompt(ids, self.in_reasoning and not ends_elsewhere)


async def chat_ids(
    service: Service,
    conventions: TextConventions,
    messages: list[Message],
    *,
    rendering: Rendering,
    ignored: list[str],
) -> tuple[int, ...]:
    """The token ids of a conversation; as :func:`chat_prompt`."""
    return (await chat_prompt(service, conventions, messages, rendering=rendering, ignored=ignored)).ids


async def chat_prompt(
    service: Service,
    conventions: TextConventions,
    messages: list[Message],
    *,
    rendering: Rendering,
    ignored: list[str],
) -> ChatPrompt:
    """A conversation as the model reads it.

    Args:
        service: the server.
        conventions: the template and the tokenizer.
        messages: the conversation.
        rendering: how it is written.
        ignored: takes the paths of fields that the template has no place for.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: the template refuses the messages, or has no place for tools or their calls.
        MixError: the members of the mix bring different templates.
    """
    rendered = [message.for_template() for message in messages]
    _check_size(service, sum(len(message["content"]) for message in rendered), "messages")
    given, tools = rendering.special_tokens, rendering.tools
    allowed = service.config.allow_special_tokens if given is None else given
    own = None if tools is None else [dict(tool) for tool in tools]
    marked = Marked(rendered, own) if allowed else await conventions.mark(rendered, tools=own)
    text = await replace(rendering, tools=marked.tools).render(conventions, marked.messages, ignored)
    _check_size(service, len(text), "messages")
    reasoning = conventions.answers.reasoning
    within = reasoning is not None and ends_within(
        text, reasoning, rendered[-1]["content"] if rendering.continue_final_message else None
    )
    if allowed:  # the template writes its own
        return ChatPrompt(await conventions.encode(text, add_special_tokens=False), within)
    return ChatPrompt(await conventions.encode_rendered(text, marked.mark), within)


def ends_within(text: str, reasoning: ReasoningSyntax, continued: str | None) -> bool:
    """Whether a prompt ends within a block of reasoning, which the template or a turn to go on with opened.

    What users write of markers opens none: other text, the end of their turn at least, follows it.
    """
    opens, closes = reasoning.open.strip(), reasoning.close.strip()
    if continued is not None:
        return continued.rfind(opens) > continued.rfind(closes)
    return text.rstrip().endswith(opens)


async def prompt_ids(
    service: Service,
    conventions: TextConventions,
    prompt: Prompt,
    *,
    add_special_tokens: bool = True,
    param: str = "prompt",
) -> tuple[int, ...]:
    """The token ids of one prompt that came in the field ``param``.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: an id outside the vocabulary.
    """
    if isinstance(prompt, str):
        _check_size(service, len(prompt), param)
        return await conventions.encode(prompt, add_special_tokens=add_special_tokens)
    vocab_size = conventions.tokenizer.vocab_size
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise RequestError(f"'{param}': token ids go from 0 to {vocab_size - 1}", param)
    return prompt


def _check_size(service: Service, chars: int, param: str) -> None:
    limit = service.max_model_len * CHARS_PER_TOKEN
    if chars > limit:
        raise ContextTooLong(
            f"'{param}' has {chars} characters; with a context window of {service.max_model_len} tokens "
            f"at most {limit} are taken",
            param,
        )


def _without(messages: Conversation, name: str) -> list[Mapping[str, Any]]:
    return [{key: value for key, value in message.items() if key != name} for message in messages]


def _no_place(param: str, what: str) -> RequestError:
    return RequestError(
        f"'{param}' is not supported: this model's chat template has no place for {what}",
        param,
        "unsupported_parameter",
    )
