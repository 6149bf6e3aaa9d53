"""An answer in Anthropic's shape while it is written: pieces become events, and add to the blocks."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from manylora.server.api.generate.answer import AnswerFrame
from manylora.server.api.generate.answer_plan import AnswerPlan
from manylora.server.api.generate.choice_content import ChoiceContent
from manylora.server.engine.sequence import Delta, FinishReason

Event = dict[str, Any]


class MessageAnswer:
    """One message: an :class:`~manylora.server.api.generate.answer.AnswerFormat`.

    A whole message is what the events of a stream come to, so that both are equal.
    """

    def __init__(self, frame: AnswerFrame, plan: AnswerPlan, *, shortened: bool) -> None:
        """
        Args:
            frame: the answer's id, the model, and counts of tokens.
            plan: how the answer is read.
            shortened: the context has no room for as many tokens as were asked for.
        """
        self._frame = frame
        self._content = ChoiceContent(plan)
        self._reasons = plan.reads_reasoning
        self._shortened = shortened
        self._begun = False
        self._calls = False
        self._open: _Block | None = None
        self._blocks: list[dict[str, Any]] = []
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def chunks(self, choice: int, delta: Delta) -> list[Event]:
        """The events that a piece of the answer makes."""
        self._frame.count(choice, delta)
        events = [] if self._begun else [self._begin()]
        for content in self._content.take(delta):
            events += self._take(content)
        if delta.finish_reason is not None:
            self._stop = self._stopped(delta)
        return events

    def last_chunks(self) -> list[Event]:
        """The events after the last piece."""
        delta = {"type": "message_delta", "delta": self._stop, "usage": self._usage()}
        return [*self._close(), delta, {"type": "message_stop"}]

    def add(self, choice: int, delta: Delta) -> None:
        """Gather a piece for the whole answer."""
        self.chunks(choice, delta)

    def whole(self) -> dict[str, Any]:
        """The message, when all pieces have come."""
        self._close()
        return self._message(self._usage())

    def _begin(self) -> Event:
        self._begun = True
        usage = {**self._usage(), "output_tokens": 0}
        return {"type": "message_start", "message": self._message(usage)}

    def _message(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._frame.head["id"],
            "type": "message",
            "role": "assistant",
            "model": self._frame.head["model"],
            "content": list(self._blocks),
            **self._stop,
            "stop_details": None,
            "container": None,
            "usage": usage,
        }

    def _usage(self) -> dict[str, Any]:
        """Counts as Anthropic has them: what came from the cache is not among the input's tokens."""
        usage = self._frame.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counts = {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }
        if self._reasons:
            counts["output_tokens_details"] = {"thinking_tokens": self._content.reasoning_tokens}
        return counts

    def _stopped(self, end: Delta) -> dict[str, str | None]:
        """Why the answer ended."""
        reason, matched = end.stop_reason, None
        if end.finish_reason is FinishReason.LENGTH:
            told = "model_context_window_exceeded" if self._shortened else "max_tokens"
        elif isinstance(reason, str):
            told, matched = "stop_sequence", reason
        else:
            told = "tool_use" if self._calls else "end_turn"
        return {"stop_reason": told, "stop_sequence": matched}

    def _take(self, content: Mapping[str, Any]) -> list[Event]:
        """Events of one delta in the shape of chats."""
        if "tool_calls" in content:
            return self._take_call(content["tool_calls"][0]["function"], content["tool_calls"][0].get("id"))
        if "content" in content:
            return self._take_text("text", content["content"])
        return self._take_text("thinking", content["reasoning_content"])

    def _take_text(self, kind: str, text: str) -> list[Event]:
        if not text:
            return []
        events: list[Event] = []
        if self._open is None or self._open.kind != kind:
            events += [*self._close(), self._start(_Block(kind))]
        return [*events, self._delta(text)]

    def _take_call(self, function: Mapping[str, str], call_id: str | None) -> list[Event]:
        events: list[Event] = []
        if call_id is not None:
            self._calls = True
            own = call_id.replace("call_", "toolu_", 1)
            events += [*self._close(), self._start(_Block("tool_use", function["name"], own))]
        return [*events, self._delta(function["arguments"])] if function["arguments"] else events

    def _start(self, block: _Block) -> Event:
        self._open = block
        return self._event("content_block_start", {"content_block": block.begun()})

    def _delta(self, text: str) -> Event:
        assert self._open is not None, "it has just been begun"
        self._open.text.append(text)
        return self._event("content_block_delta", {"delta": self._open.delta(text)})

    def _close(self) -> list[Event]:
        """End the block that is open."""
        block, events = self._open, []
        if block is None:
            return []
        whole = block.whole()
        if block.kind == "thinking":
            delta = {"type": "signature_delta", "signature": whole["signature"]}
            events.append(self._event("content_block_delta", {"delta": delta}))
        events.append(self._event("content_block_stop", {}))
        self._blocks.append(whole)
        self._open = None
        return events

    def _event(self, kind: str, content: Mapping[str, Any]) -> Event:
        return {"type": kind, "index": len(self._blocks), **content}


class _Block:
    """The block that the answer is in."""

    def __init__(self, kind: str, name: str = "", call_id: str = "") -> None:
        self.kind = kind
        self._name, self._call_id = name, call_id
        self.text: list[str] = []

    def begun(self) -> dict[str, Any]:
        """The block as it begins."""
        return self._shown("", {}, "")

    def delta(self, text: str) -> dict[str, str]:
        """What ``text`` adds to it."""
        if self.kind == "tool_use":
            return {"type": "input_json_delta", "partial_json": text}
        return {"type": f"{self.kind}_delta", self.kind: text}

    def whole(self) -> dict[str, Any]:
        """The block with all that came."""
        text = "".join(self.text)
        return self._shown(text, _input(text) if self.kind == "tool_use" else {}, _signature(text))

    def _shown(self, text: str, arguments: Any, signature: str) -> dict[str, Any]:
        if self.kind == "text":
            return {"type": "text", "text": text, "citations": None}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": signature}
        return {"type": "tool_use", "id": self._call_id, "name": self._name, "input": arguments}


def _input(text: str) -> Any:
    """The arguments of a call: of one that was cut off, what is complete, as Anthropic's clients read it."""
    try:
        return from_json(text, allow_partial=True) if text else {}
    except ValueError:  # the model wrote no JSON
        return text


def _signature(text: str) -> str:
    """What stands where Anthropic signs a thought, for clients that miss it: nobody checks it here."""
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()
