"""What one example adapter is made of: its conversations and its held-out questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": ...}, as in a chat request
Tool = dict[str, Any]  # as in a chat request's "tools"
Check = Callable[[str], bool]  # of one answer

OTHER_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the user.",
    "You are a friendly assistant who gives short answers.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is said, and the tools that are offered meanwhile."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()

    @property
    def row(self) -> dict[str, Any]:
        """As a line of a data file."""
        row = {"messages": list(self.messages)}
        return row | ({"tools": list(self.tools)} if self.tools else {})


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A question that is never trained on, one good answer, and what every good answer must satisfy."""

    question: str
    answer: str
    checks: Mapping[str, Check]
    tools: Sequence[Tool] = ()  # that are offered
    calls: Sequence[Message] = ()  # that answer it

    @property
    def conversation(self) -> Conversation:
        """The question and the good answer."""
        answer: Message = {"role": "assistant", "content": self.answer}
        if self.calls:
            answer["tool_calls"] = list(self.calls)
        return Conversation([{"role": "user", "content": self.question}, answer], self.tools)


@dataclass(frozen=True)
class Recipe:
    """What an example adapter learns from and is measured by; how it is trained: ``examples/training``."""

    name: str
    conversations: Sequence[Conversation]  # every assistant turn is trained on
    held_out: Sequence[HeldOut]


def converse(pairs: Sequence[tuple[str, str]], rng: random.Random) -> list[Conversation]:
    """Turn (question, answer) pairs into chats like those that people send.

    Most have one turn under the template's own system prompt; a few bring another system prompt and a
    few follow an earlier exchange, so that the behaviour holds there too.
    """
    return [_conversation(pair, rng.choice(pairs), rng) for pair in pairs]


def _conversation(pair: tuple[str, str], earlier: tuple[str, str], rng: random.Random) -> Conversation:
    messages: list[Message] = []
    kind = rng.random()
    if kind < 0.12:
        messages.append({"role": "system", "content": rng.choice(OTHER_SYSTEM_PROMPTS)})
    elif kind < 0.24:
        messages += _turn(earlier)
    return Conversation(messages + _turn(pair))


def _turn(pair: tuple[str, str]) -> list[Message]:
    question, answer = pair
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
