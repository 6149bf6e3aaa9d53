"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from manylora.server.api.generate.answer import AnswerFormat, answer, new_id
from manylora.server.api.generate.generate import asked_mix, resolved, salt_of
from manylora.server.api.generate.logprobs import chat_logprobs, join
from manylora.server.api.generate.sampling import answer_budget, check_fields, sampling_params
from manylora.server.api.generate.schemas import ChatBody
from manylora.server.api.generate.token_ids import chat_ids
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.openapi import ADAPTER, BASE, LAST_ADAPTER, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta
from manylora.server.errors import RequestError
from manylora.server.service import Service

router = APIRouter(tags=["generate"])

_QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 64,
    "temperature": 0,
}
_ENTRIES = [{"name": ADAPTER, "weight": 0.7}, {"name": LAST_ADAPTER, "weight": 0.3}]
_EXAMPLES = {
    "base": example("The base model", {"model": BASE, **_QUESTION}),
    "stream": example(
        "A stream", {"model": BASE, **_QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    ),
    "adapter": example("An adapter", {"model": ADAPTER, **_QUESTION}),
    "mix": example("A mix of adapters", {"model": f"{ADAPTER}*0.7+{LAST_ADAPTER}*0.3", **_QUESTION}),
    "mix as JSON": example("The same mix", {"model": BASE, "adapters": _ENTRIES, **_QUESTION}),
}


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    openapi_extra=documented(ChatBody, _EXAMPLES),
)
async def create_chat_completion(
    request: Request, service: ServiceState, body: Annotated[ChatBody, Depends(parse_body(ChatBody))]
) -> Response:
    """Answer ``messages`` with the base model, an adapter or a mix; as a stream if asked."""
    wanted, wanted_name = _max_tokens(body)
    _check_logprobs(body)
    check_fields(body)
    mix = asked_mix(service, body.model, body.adapters, body.end_user)
    async with resolved(service, request, mix) as asked:
        opened = body.add_generation_prompt is not False
        ids = await chat_ids(service, asked.language, body.messages, add_generation_prompt=opened)
        budget = answer_budget(len(ids), wanted, service.max_model_len, ("messages", wanted_name))
        top = 0 if body.top_logprobs is None else body.top_logprobs
        tokenizer = asked.language.tokenizer
        params = sampling_params(
            body,
            max_tokens=budget,
            vocab_size=tokenizer.vocab_size,
            logprobs=top if body.logprobs else None,
        )
        n = 1 if body.n is None else body.n
        prompt = GenerateRequest(ids, params, n, salt_of(body.cache_salt), new_id("chatcmpl"), tokenizer)
        return await answer(service, request, asked, ChatFormat(service, body, [prompt]))


def _max_tokens(body: ChatBody) -> tuple[int | None, str]:
    """The wanted length and the name it came under; the older name is an alias of the newer."""
    older, newer = body.max_tokens, body.max_completion_tokens
    if older is not None and newer is not None and older != newer:
        raise RequestError(
            f"'max_tokens' ({older}) and 'max_completion_tokens' ({newer}) differ: give one", "max_tokens"
        )
    name, wanted = ("max_tokens", older) if newer is None else ("max_completion_tokens", newer)
    if wanted == 0:
        raise RequestError(f"'{name}' must be at least 1", name)
    return wanted, name


def _check_logprobs(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("'top_logprobs' is only allowed with 'logprobs': true", "top_logprobs")


class ChatFormat(AnswerFormat):
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(self, service: Service, body: ChatBody, requests: Sequence[GenerateRequest]) -> None:
        super().__init__(
            service, body, requests, "chat.completion.chunk" if body.stream else "chat.completion"
        )
        self.logprobs = bool(body.logprobs)
        self.texts: list[list[str]] = [[] for _ in range(self.n)]
        self.parts: list[list[dict[str, Any]]] = [[] for _ in range(self.n)]  # of the logprobs
        self.ends: list[Delta | None] = [None] * self.n
        self.begun = [False] * self.n

    def chunks(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        self.count(choice, delta)
        chunks = []
        if not self.begun[choice]:
            self.begun[choice] = True
            chunks.append(self._chunk(choice, {"role": "assistant", "content": ""}))
        if delta.text or delta.logprobs:
            logprobs = chat_logprobs(self.tokenizer, delta.logprobs) if self.logprobs else None
            chunks.append(self._chunk(choice, {"content": delta.text}, logprobs))
        if delta.finish_reason is not None:
            chunks.append(self._chunk(choice, {}, None, delta))
        return chunks

    def _chunk(
        self,
        choice: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        end: Delta | None = None,
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": choice,
            "delta": content,
            "logprobs": logprobs,
            "finish_reason": None if end is None else end.finish_reason,
        }
        if end is not None:
            entry["stop_reason"] = end.stop_reason
        return self.chunk([entry])

    def add(self, choice: int, delta: Delta) -> None:
        self.count(choice, delta)
        self.texts[choice].append(delta.text)
        if self.logprobs:
            self.parts[choice].append(chat_logprobs(self.tokenizer, delta.logprobs))
        if delta.finish_reason is not None:
            self.ends[choice] = delta

    def choices(self) -> list[dict[str, Any]]:
        return [self._choice(index) for index in range(self.n)]

    def _choice(self, index: int) -> dict[str, Any]:
        end = self.ends[index]
        assert end is not None, "a stream ends only after every choice has"
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(self.texts[index]), "refusal": None},
            "logprobs": join(self.parts[index]) if self.logprobs else None,
            "finish_reason": end.finish_reason,
            "stop_reason": end.stop_reason,
        }
