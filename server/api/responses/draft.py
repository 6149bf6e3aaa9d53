"""A response while it is written: each piece of the answer becomes events, and adds to the items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from manylora.server.api.generate.answer import AnswerFrame
from manylora.server.api.generate.answer_plan import AnswerPlan
from manylora.server.api.generate.choice_content import ChoiceContent
from manylora.server.api.generate.logprobs import chat_logprobs
from manylora.server.api.responses.references import OUTPUT, item_id
from manylora.server.engine.sequence import Delta, FinishReason
from manylora.server.model.text.tokenizer import Tokenizer
from manylora.server.responses.stored import Event, Item


class Draft:
    """One response. Sees each delta of the engine once, in order; what it says of it are the stream's events.

    A whole answer is what the same events come to, so that both are equal.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        frame: AnswerFrame,
        plan: AnswerPlan,
        tokenizer: Tokenizer,
        *,
        logprobs: bool,
    ) -> None:
        """
        Args:
            head: the response without what is known at its end.
            frame: counts tokens.
            plan: how the answer is read.
            tokenizer: of the log probabilities.
            logprobs: whether text carries them.
        """
        self._head = dict(head)
        self._frame = frame
        self._tokenizer = tokenizer
        self._content = ChoiceContent(plan)
        self._logprobs = logprobs
        self._output: list[Item] = []
        self._open: _OpenItem | None = None
        self._number = 0
        self._status, self._ended_at = "in_progress", 0
        self._error: dict[str, str] | None = None
        self._cut = False
        self._waiting: list[dict[str, Any]] = []  # log probabilities of text that is held back

    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        ended = self._status != "in_progress"
        return {
            **self._head,
            "status": self._status,
            "completed_at": self._ended_at if self._status == "completed" else None,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._cut else None,
            "output": [dict(item) for item in self._output],
            "usage": self._usage() if ended else None,
        }

    def begin(self) -> list[Event]:
        """The events before the first piece."""
        queued = []
        if self._head["background"]:
            queued = [self._with_response(kind, "queued") for kind in ("response.created", "response.queued")]
        created = queued or [self._with_response("response.created")]
        return [*created, self._with_response("response.in_progress")]

    def add(self, delta: Delta) -> list[Event]:
        """The events that a piece of the answer makes."""
        self._frame.count(0, delta)
        self._waiting += self._probabilities(delta)
        events = []
        for content in self._content.take(delta):
            events += self._take(content)
        if delta.finish_reason is not None:
            self._cut = delta.finish_reason is FinishReason.LENGTH
        return events

    def end(self) -> list[Event]:
        """The events after the last piece."""
        empty = not self._output and self._open is None
        events = self._take({"content": ""}) if empty else []
        self._status = "incomplete" if self._cut else "completed"
        self._ended_at = int(time.time())
        events += self._close(self._status)
        return [*events, self._with_response(f"response.{self._status}")]

    def fail(self, code: str, message: str, *, cancelled: bool = False) -> list[Event]:
        """The events of an answer that ends by a fault, or because nobody wants it any more."""
        events = self._close("incomplete")
        if cancelled:
            self._status = "cancelled"
            return events
        self._status, self._error = "failed", {"code": code, "message": message}
        return [*events, self._with_response("response.failed")]

    def kept(self, *, store: bool) -> None:
        """Say whether the response can be gone on from."""
        self._head["store"] = store

    def _usage(self) -> dict[str, Any]:
        usage = self._frame.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._content.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }

    def _probabilities(self, delta: Delta) -> list[dict[str, Any]]:
        if not self._logprobs:
            return []
        told = chat_logprobs(self._tokenizer, delta.logprobs)
        return [] if told is None else list(told["content"])

    def _take(self, content: Mapping[str, Any]) -> list[Event]:
        """Events of one delta in the shape of chats. Only text carries log probabilities."""
        if "content" in content:
            return self._take_text("message", content["content"])
        self._waiting = []
        if "tool_calls" in content:
            return self._take_call(content["tool_calls"][0])
        return self._take_text("reasoning", content["reasoning_content"])

    def _take_text(self, kind: str, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open.kind != kind:
            events += self._close("completed")
            events += self._begin(_OpenItem(self._next_id(kind), kind))
        item = self._open
        assert item is not None, "it has just been begun"
        if not text:
            return events
        item.text.append(text)
        probabilities, self._waiting = self._waiting, []
        item.logprobs += probabilities
        told: Event = {**self._place(), "content_index": 0, "delta": text}
        if kind == "message":
            told["logprobs"] = probabilities
        return [*events, self._event(item.event("delta"), told)]

    def _take_call(self, call: Mapping[str, Any]) -> list[Event]:
        function, events = call["function"], []
        if "name" in function:
            events += self._close("completed")
            kind = "function_call"
            events += self._begin(_OpenItem(self._next_id(kind), kind, function["name"], call["id"]))
        item = self._open
        assert item is not None, "a call begins with its name"
        if function["arguments"]:
            item.text.append(function["arguments"])
            told = {**self._place(), "delta": function["arguments"]}
            events.append(self._event(item.event("delta"), told))
        return events

    def _next_id(self, kind: str) -> str:
        return item_id(kind, self._head["id"], OUTPUT, len(self._output))

    def _begin(self, item: _OpenItem) -> list[Event]:
        self._open = item
        events = [self._item_event("response.output_item.added", item.shown("in_progress", empty=True))]
        if item.kind != "function_call":
            told = {**self._place(), "content_index": 0, "part": item.part(empty=True)}
            events.append(self._event("response.content_part.added", told))
        return events

    def _close(self, status: str) -> list[Event]:
        """End the item that is open."""
        item = self._open
        if item is None:
            return []
        place, text = self._place(), "".join(item.text)
        item.logprobs += self._waiting if item.kind == "message" else []
        self._waiting = []
        if item.kind == "function_call":
            done = {**place, "name": item.name, "arguments": text}
            events = [self._event(item.event("done"), done)]
        else:
            done = {**place, "content_index": 0, "text": text}
            if item.kind == "message":
                done["logprobs"] = item.logprobs
            part = {**place, "content_index": 0, "part": item.part()}
            events = [
                self._event(item.event("done"), done),
                self._event("response.content_part.done", part),
            ]
        shown = item.shown(status)
        events.append(self._item_event("response.output_item.done", shown))
        self._output.append(shown)
        self._open = None
        return events

    def _place(self) -> Event:
        assert self._open is not None, "there is an item"
        return {"item_id": self._open.id, "output_index": len(self._output)}

    def _item_event(self, kind: str, item: Item) -> Event:
        return self._event(kind, {"output_index": len(self._output), "item": item})

    def _with_response(self, kind: str, status: str | None = None) -> Event:
        response = self.response()
        return self._event(kind, {"response": response if status is None else {**response, "status": status}})

    def _event(self, kind: str, content: Mapping[str, Any]) -> Event:
        event = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return event


_EVENTS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}


class _OpenItem:
    """The item that the answer is in."""

    def __init__(self, own_id: str, kind: str, name: str = "", call_id: str = "") -> None:
        self.id = own_id
        self.kind, self.name, self.call_id = kind, name, call_id
        self.text: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    def event(self, step: str) -> str:
        """The name of the event ``step`` ("delta", "done") of its text."""
        return f"{_EVENTS[self.kind]}.{step}"

    def part(self, *, empty: bool = False) -> dict[str, Any]:
        """Its only part."""
        text = "" if empty else "".join(self.text)
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        probabilities: Sequence[Any] = [] if empty else self.logprobs
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": probabilities}

    def shown(self, status: str, *, empty: bool = False) -> Item:
        """The item; ``empty`` when it begins."""
        head = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            arguments = "" if empty else "".join(self.text)
            return {**head, "call_id": self.call_id, "name": self.name, "arguments": arguments}
        content = [] if empty else [self.part()]
        if self.kind == "reasoning":
            return {**head, "summary": [], "content": content}
        return {**head, "role": "assistant", "content": content}
