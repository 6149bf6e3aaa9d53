"""The shape of chat answers: ``chat.completion``, and ``chat.completion.chunk`` in streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manylora.server.api.generate.answer import AnswerFrame
from manylora.server.api.generate.answer_plan import AnswerPlan
from manylora.server.api.generate.choice_content import ChoiceContent
from manylora.server.api.generate.logprobs import chat_logprobs, join, prompt_logprobs
from manylora.server.api.request.schemas import ChatBody
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta
from manylora.server.service import Service


class ChatFormat:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(
        self,
        service: Service,
        body: ChatBody,
        requests: Sequence[GenerateRequest],
        model: str,
        plan: AnswerPlan,
    ) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self.frame = AnswerFrame(service, body, requests, kind=kind, model=model)
        self.frame.reasoning_tokens = 0 if plan.reads_reasoning else None
        self.tokenizer = requests[0].tokenizer or service.tokenizer
        self.logprobs = bool(body.logprobs)
        self.names_ids = bool(body.return_tokens_as_token_ids)
        self.prompt_ids = requests[0].prompt_ids if body.return_token_ids else None  # None: no ids wanted
        self.told_prompt_ids = False
        self.prompt_logprobs: list[Any] | None = None
        n = self.frame.n
        self.contents = [ChoiceContent(plan) for _ in range(n)]
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.parts: list[list[dict[str, Any]]] = [[] for _ in range(n)]  # of the logprobs
        self.ends: list[Delta | None] = [None] * n
        self.begun = [False] * n

    def chunks(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        contents = self._read(choice, delta)
        chunks = []
        if not self.begun[choice]:
            self.begun[choice] = True
            chunks.append(self._chunk(choice, self.contents[choice].first))
        if not contents and (delta.logprobs or self._ids(delta)):
            contents.append({"content": ""} if self.contents[choice].is_plain else {})
        for index, content in enumerate(contents):
            if index:
                chunks.append(self._chunk(choice, content))
                continue
            logprobs = self._logprobs(delta) if self.logprobs else None
            chunks.append(self._chunk(choice, content, logprobs, ids=self._ids(delta)))
        if delta.finish_reason is not None:
            chunks.append(self._chunk(choice, {}, None, delta))
        if self.prompt_ids is not None and not self.told_prompt_ids:
            self.told_prompt_ids = True
            chunks[0]["prompt_token_ids"] = self.prompt_ids
        return chunks

    def _read(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        """Count ``delta``, and what it adds to its choice."""
        self.frame.count(choice, delta)
        contents = self.contents[choice].take(delta)
        if self.frame.reasoning_tokens is not None:
            self.frame.reasoning_tokens = sum(content.reasoning_tokens for content in self.contents)
        return contents

    def _ids(self, delta: Delta) -> tuple[int, ...]:
        """The token ids to tell of ``delta``: none unless they are wanted."""
        return () if self.prompt_ids is None else delta.token_ids

    def _chunk(
        self,
        choice: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        end: Delta | None = None,
        *,
        ids: tuple[int, ...] = (),
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": choice,
            "delta": content,
            "logprobs": logprobs,
            "finish_reason": None if end is None else self._finish_reason(choice, end),
        }
        if end is not None:
            entry["stop_reason"] = end.stop_reason
        if self.prompt_ids is not None:
            entry["token_ids"] = ids
        return self.frame.chunk([entry])

    def add(self, choice: int, delta: Delta) -> None:
        self._read(choice, delta)
        self.ids[choice].extend(self._ids(delta))
        if choice == 0 and delta.prompt_logprobs:
            self.prompt_logprobs = prompt_logprobs(self.tokenizer, delta.prompt_logprobs)
        if self.logprobs:
            self.parts[choice].append(self._logprobs(delta))
        if delta.finish_reason is not None:
            self.ends[choice] = delta

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        return chat_logprobs(self.tokenizer, delta.logprobs, as_ids=self.names_ids)

    def last_chunks(self) -> list[dict[str, Any]]:
        return self.frame.last_chunks()

    def whole(self) -> dict[str, Any]:
        answer = self.frame.whole([self._choice(index) for index in range(self.frame.n)])
        if self.prompt_ids is not None:
            answer["prompt_token_ids"] = self.prompt_ids
        if self.prompt_logprobs is not None:
            answer["prompt_logprobs"] = self.prompt_logprobs
        return answer

    def _choice(self, index: int) -> dict[str, Any]:
        end = self.ends[index]
        assert end is not None, "a stream ends only after every choice has"
        return {
            "index": index,
            "message": self.contents[index].message(),
            "logprobs": join(self.parts[index]) if self.logprobs else None,
            "finish_reason": self._finish_reason(index, end),
            "stop_reason": end.stop_reason,
            **({} if self.prompt_ids is None else {"token_ids": self.ids[index]}),
        }

    def _finish_reason(self, choice: int, end: Delta) -> str:
        assert end.finish_reason is not None, "the last delta of a choice has one"
        return self.contents[choice].finish_reason(end.finish_reason)
