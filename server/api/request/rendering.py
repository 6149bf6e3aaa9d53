"""How a conversation becomes text, and which of its fields the chat template has a place for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from manylora.server.errors import RequestError
from manylora.server.model.text.conventions import TextConventions

Messages = Sequence[Mapping[str, Any]]

# Fields of messages that a template may have no place for; without one they change nothing.
_OPTIONAL = ("name", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a request says of how its conversation is written."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    # The request's parameter -> the template's variables that it sets.
    variables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    async def render(self, conventions: TextConventions, messages: Messages, ignored: list[str]) -> str:
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
        await self._check_tools(conventions, messages, text)
        for name in _OPTIONAL:
            holders = [index for index, message in enumerate(messages) if name in message]
            if holders and await self._same(conventions, _without(messages, name), text):
                ignored.extend(f"messages[{index}].{name}" for index in holders)
        for param in self.variables:
            others = {key: value for key, value in self.variables.items() if key != param}
            if await self._same(conventions, messages, text, others):
                ignored.append(param)
        return await self._continued(conventions, messages) if self.continue_final_message else text

    async def _text(
        self,
        conventions: TextConventions,
        messages: Messages,
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        chosen = self.variables if variables is None else variables
        return await conventions.render(
            messages,
            add_generation_prompt=self.add_generation_prompt and not self.continue_final_message,
            variables={name: value for each in chosen.values() for name, value in each.items()},
        )

    async def _same(
        self,
        conventions: TextConventions,
        messages: Messages,
        text: str,
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> bool:
        """Whether the template writes ``text`` for these messages and variables, too."""
        try:
            return await self._text(conventions, messages, variables) == text
        except RequestError:  # it misses what was left out
            return False

    async def _check_tools(self, conventions: TextConventions, messages: Messages, text: str) -> None:
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

    async def _continued(self, conventions: TextConventions, messages: Messages) -> str:
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


def _without(messages: Messages, name: str) -> list[Mapping[str, Any]]:
    return [{key: value for key, value in message.items() if key != name} for message in messages]


def _no_place(param: str, what: str) -> RequestError:
    return RequestError(
        f"'{param}' is not supported: this model's chat template has no place for {what}",
        param,
        "unsupported_parameter",
    )
