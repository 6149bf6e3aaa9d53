"""What one choice of a chat answer holds: text, reasoning, calls of tools; in deltas and as a whole."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from manylora.adapters.format.answers.events import AnswerEvent, Arguments, CallBegins, Text, Thought
from manylora.adapters.format.answers.syntax import IdForm
from manylora.server.api.generate.answer_plan import AnswerPlan
from manylora.server.engine.sequence import Delta, FinishReason

_REASONING = ("reasoning_content", "reasoning")  # newer servers say the second, older ones the first
_LETTERS = string.ascii_letters + string.digits


class ChoiceContent:
    """Reads one choice as it arrives, by the format that the plan names."""

    def __init__(self, plan: AnswerPlan) -> None:
        self._plan = plan
        self._parser = plan.parser()
        self._text: list[str] = []
        self._thought: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._tokens = 0
        self.reasoning_tokens = 0

    @property
    def is_plain(self) -> bool:
        """Whether all of the answer is text."""
        return self._parser is None

    @property
    def first(self) -> dict[str, Any]:
        """The delta that begins the choice; where there may be no content, it has none yet."""
        first = {"role": "assistant", "content": "" if self._parser is None else None, "refusal": None}
        return {**first, **self._reasoning(None)}

    def _reasoning(self, thought: str | None) -> dict[str, str | None]:
        """Reasoning under both of its names; nothing where it is not told apart."""
        return dict.fromkeys(_REASONING, thought) if self._plan.separates_reasoning else {}

    def take(self, delta: Delta) -> list[dict[str, Any]]:
        """The deltas in OpenAI's shape that ``delta`` of the engine comes to."""
        return [self._shape(event) for event in _joined(self._read(delta))]

    def _read(self, delta: Delta) -> list[AnswerEvent]:
        parser = self._parser
        if parser is None:
            return [Text(delta.text)] if delta.text else []
        before, self._tokens = parser.in_reasoning, self._tokens + len(delta.token_ids)
        events = parser.feed(delta.text)
        if before:
            self.reasoning_tokens += len(delta.token_ids)
        elif parser.in_reasoning:  # all there is so far is the marker
            self.reasoning_tokens = self._tokens
        if delta.finish_reason is not None:
            events += parser.finish()
            if not (self._text or self._thought or self._calls or events):
                events.append(Text(""))
        return [event for event in events if self._plan.tells_reasoning or not isinstance(event, Thought)]

    def _shape(self, event: AnswerEvent) -> dict[str, Any]:
        if isinstance(event, Text):
            self._text.append(event.text)
            return {"content": event.text}
        if isinstance(event, Thought):
            self._thought.append(event.text)
            return {**self._reasoning(event.text)}
        if isinstance(event, CallBegins):
            function = {"name": event.name, "arguments": ""}
            call = {"id": _call_id(self._plan.ids), "type": "function", "function": function}
            self._calls.append({**call, "function": dict(function)})
            return {"tool_calls": [{"index": event.index, **call}]}
        self._calls[event.index]["function"]["arguments"] += event.text
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}

    def message(self) -> dict[str, Any]:
        """The whole message."""
        text, thought = "".join(self._text), "".join(self._thought)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not (thought or self._calls) else None,
            "refusal": None,
            "annotations": [],
            **self._reasoning(thought or None),
        }
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def finish_reason(self, reason: FinishReason) -> str:
        """As OpenAI says it: an answer that calls tools ends for that, unless it was told which to call."""
        if reason is FinishReason.STOP and self._calls and not self._plan.named:
            return "tool_calls"
        return reason.value


def _joined(events: Iterable[AnswerEvent]) -> list[AnswerEvent]:
    """Consecutive events of one kind as one."""
    joined: list[AnswerEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + event.text)
        elif isinstance(event, Thought) and isinstance(last, Thought):
            joined[-1] = Thought(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and event.index == last.index:
            joined[-1] = Arguments(last.index, last.text + event.text)
        else:
            joined.append(event)
    return joined


def _call_id(form: IdForm) -> str:
    if form is IdForm.NINE:
        return "".join(secrets.choice(_LETTERS) for _ in range(9))
    return f"call_{uuid4().hex[:24]}"
