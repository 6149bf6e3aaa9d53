"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response

from manylora.server.api.generate.answer import AnswerFrame, respond
from manylora.server.api.generate.generate import generate
from manylora.server.api.generate.generation import Generation
from manylora.server.api.generate.logprobs import chat_logprobs, join
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.openapi import ADAPTER, BASE, LAST_ADAPTER, documented, example
from manylora.server.api.http.scopes import INFER, needs
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.mix_request import read_mix, salt_of
from manylora.server.api.request.sampling import answer_budget, check_fields, sampling_params
from manylora.server.api.request.schemas import ChatBody
from manylora.server.api.request.token_ids import chat_ids
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta
from manylora.server.errors import RequestError
from manylora.server.model.text.conventions import TextConventions
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
@needs(INFER)
async def create_chat_completion(
    request: Request, service: ServiceState, body: Annotated[ChatBody, Depends(parse_body(ChatBody))]
) -> Response:
    """Answer ``messages`` with the base model, an adapter or a mix; as a stream if asked."""
    wanted, wanted_name = _max_tokens(body)
    _check_logprobs(body)
    check_fields(body)
    mix = read_mix(service, body.model, body.adapters, body.end_user)
    return await generate(service, request, mix, ChatEndpoint(service, body, wanted, wanted_name))


class ChatEndpoint:
    """One conversation to be answered."""

    classifies = False
    input_param = "n"

    def __init__(
        self, service: Service, body: ChatBody, max_tokens: int | None, max_tokens_name: str
    ) -> None:
        """``max_tokens`` is the wanted length, and came under ``max_tokens_name``."""
        self._service = service
        self._body = body
        self._max_tokens = max_tokens
        self._max_tokens_name = max_tokens_name
        self._requests: list[GenerateRequest] = []

    async def requests(self, conventions: TextConventions) -> list[GenerateRequest]:
        """The conversation in tokens."""
        body, service = self._body, self._service
        opened = body.add_generation_prompt is not False
        ids = await chat_ids(service, conventions, body.messages, add_generation_prompt=opened)
        names = ("messages", self._max_tokens_name)
        budget = answer_budget(len(ids), self._max_tokens, service.max_model_len, names)
        top = 0 if body.top_logprobs is None else body.top_logprobs
        tokenizer = conventions.tokenizer
        params = sampling_params(
            body,
            max_tokens=budget,
            vocab_size=tokenizer.vocab_size,
            logprobs=top if body.logprobs else None,
        )
        n = 1 if body.n is None else body.n
        salt = salt_of(body.cache_salt)
        self._requests = [GenerateRequest(ids, params, n, salt, f"chatcmpl-{uuid4().hex}", tokenizer)]
        return self._requests

    async def respond(self, request: Request, generation: Generation) -> Response:
        """A completion, or the stream of one."""
        form = ChatFormat(self._service, self._body, self._requests, generation.model)
        return await respond(self._service, request, generation, form, stream=bool(self._body.stream))


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


class ChatFormat:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(
        self, service: Service, body: ChatBody, requests: Sequence[GenerateRequest], model: str
    ) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self.frame = AnswerFrame(service, body, requests, kind=kind, model=model)
        self.tokenizer = requests[0].tokenizer or service.tokenizer
        self.logprobs = bool(body.logprobs)
        n = self.frame.n
        self.texts: list[list[str]] = [[] for _ in range(n)]
        self.parts: list[list[dict[str, Any]]] = [[] for _ in range(n)]  # of the logprobs
        self.ends: list[Delta | None] = [None] * n
        self.begun = [False] * n

    def chunks(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        self.frame.count(choice, delta)
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
        return self.frame.chunk([entry])

    def add(self, choice: int, delta: Delta) -> None:
        self.frame.count(choice, delta)
        self.texts[choice].append(delta.text)
        if self.logprobs:
            self.parts[choice].append(chat_logprobs(self.tokenizer, delta.logprobs))
        if delta.finish_reason is not None:
            self.ends[choice] = delta

    def last_chunks(self) -> list[dict[str, Any]]:
        return self.frame.last_chunks()

    def whole(self) -> dict[str, Any]:
        return self.frame.whole([self._choice(index) for index in range(self.frame.n)])

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
