"""One request of the Responses API: the conversation it goes on with, and how it is answered."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import Request, Response

from manylora.server.api.access.scopes import KeyScope, caller_scope
from manylora.server.api.generate.answer import AnswerFrame
from manylora.server.api.generate.chat import ChatEndpoint
from manylora.server.api.generate.generation import Generation
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.event_stream import DONE, EventStream, encode_named
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.model_header import model_header
from manylora.server.api.request.schemas import ChatBody, Message
from manylora.server.api.responses.blame import WORDING
from manylora.server.api.responses.draft import Draft
from manylora.server.api.responses.references import with_ids
from manylora.server.api.responses.schemas import ResponsesBody
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.errors import ContextTooLong
from manylora.server.model.text.conventions import TextConventions
from manylora.server.responses.stored import Event, Item, StoredResponse
from manylora.server.service import Service

logger = logging.getLogger(__name__)


class ResponsesEndpoint:
    """Answers one request; an endpoint of :func:`~manylora.server.api.generate.generate.generate`."""

    classifies = False
    input_param = "input"

    def __init__(
        self,
        service: Service,
        body: ResponsesBody,
        before: list[Item],
        ignored: list[str],
        tenant: str | None = None,
    ) -> None:
        """
        Args:
            service: the server.
            body: what was asked for.
            before: the items that it goes on from.
            ignored: takes the paths of fields that did nothing.
            tenant: whose the response is, by id.

        Raises:
            RequestError: the conversation, the tools or the format are malformed.
        """
        self._service, self._body, self._before, self._ignored = service, body, before, ignored
        self._tenant = tenant
        self.id = f"resp_{uuid4().hex}"
        with WORDING.used():
            self._chat_body = body.for_chat(before)
            self._chat = self._ask(self._chat_body, ignored)
        self._requests: list[GenerateRequest] = []

    def _ask(self, body: ChatBody, ignored: list[str]) -> ChatEndpoint:
        return ChatEndpoint(self._service, body, self._body.max_output_tokens, "max_output_tokens", ignored)

    async def requests(self, conventions: TextConventions) -> Sequence[GenerateRequest]:
        """The conversation in tokens; with ``truncation`` as much of it as fits."""
        with WORDING.used():
            try:
                found = await self._chat.requests(conventions)
            except ContextTooLong:
                if self._body.truncation != "auto":
                    raise
                found = await self._shortened(conventions)
        self._requests = [replace(found[0], request_id=self.id)]
        return self._requests

    async def _shortened(self, conventions: TextConventions) -> list[GenerateRequest]:
        """The conversation without as many of its oldest turns as have to go.

        Raises:
            ContextTooLong: not even the last turn fits.
        """
        messages = self._chat_body.messages
        starts = _turns(messages)
        head = messages[: starts[0]] if starts else []
        low, high = 1, len(starts) - 1  # a cut at low - 1 is too long; one at high may be
        if high < 1:
            raise ContextTooLong("'input': its only turn does not fit into the context", "messages")
        best: tuple[ChatEndpoint, list[GenerateRequest], list[str]] | None = None
        while low <= high:
            middle = (low + high) // 2
            ignored: list[str] = []
            body = self._chat_body.model_copy(update={"messages": [*head, *messages[starts[middle] :]]})
            chat = self._ask(body, ignored)
            try:
                best = (chat, await chat.requests(conventions), ignored)
                high = middle - 1
            except ContextTooLong:
                if middle == len(starts) - 1:
                    raise
                low = middle + 1
        assert best is not None, "the last cut fits, or has been refused"
        self._chat, found, told = best
        self._ignored.extend(told)
        return found

    async def respond(self, request: Request, generation: Generation) -> Response:
        """The response: streamed, whole, or promised."""
        draft = self._draft(generation.model)
        headers = model_header(generation.model)
        if self._body.background:
            return self._begun(draft, generation, headers)
        if self._body.stream:
            events = self._events(draft, generation, caller_scope(request.scope))
            return EventStream(events, generation.aclose, headers)
        try:
            await unless_disconnected(request, self._gather(draft, generation))
            return Json(draft.response(), headers=headers)
        finally:
            await generation.aclose()

    def _begun(self, draft: Draft, generation: Generation, headers: Mapping[str, str]) -> Response:
        """Begin a response in the background: its stream, whose end does not end it, or what it is now."""
        first, background = self._stored(draft), self._service.background
        if self._body.stream:
            first = replace(first, events=draft.begin())
        background.start(self._work(draft, generation, first.events), first, generation.aclose)
        if self._body.stream:
            return EventStream(told(background.follow(self.id, 0)), nothing, headers)
        return Json({**first.response, "status": "queued"}, headers=headers)

    def _draft(self, model: str) -> Draft:
        frame = AnswerFrame(self._service, self._chat_body, self._requests, kind="response", model=model)
        tokenizer = self._requests[0].tokenizer or self._service.tokenizer
        return Draft(self._head(model), frame, self._chat.plan, tokenizer, logprobs=self._body.wants_logprobs)

    def _head(self, model: str) -> dict[str, Any]:
        """The response without its answer: what was asked for, with the defaults filled in."""
        body = self._body
        text = None if body.text is None else body.text.model_dump(by_alias=True, exclude_none=True)
        tools = [tool.model_dump() for tool in body.tools or ()]
        effort = None if body.reasoning is None else body.reasoning.effort
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "instructions": body.instructions,
            "previous_response_id": body.previous_response_id,
            "tools": [{**tool, "strict": bool(tool["strict"])} for tool in tools],
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "truncation": body.truncation or "disabled",
            "text": {"format": {"type": "text"}, **(text or {})},
            "reasoning": {"effort": effort, "summary": None},
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "top_logprobs": body.top_logprobs or 0,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "store": self.stores,
            "background": bool(body.background),
            "service_tier": "default",
            "metadata": body.metadata or {},
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": None,
            "user": body.user,
        }

    @property
    def stores(self) -> bool:
        """Whether the response is to be kept."""
        return self._body.store is not False and self._service.responses.keeps

    def _stored(self, draft: Draft, events: list[Event] | None = None) -> StoredResponse:
        items = with_ids(self._body.input, self.id)
        return StoredResponse(draft.response(), items, self._before, self._tenant, events)

    async def _keep(self, draft: Draft) -> None:
        """Keep the response, before anybody hears that it is complete: they may go on from it at once."""
        if self.stores and not await self._service.responses.put(self._stored(draft)):
            draft.kept(store=False)

    async def _gather(self, draft: Draft, generation: Generation) -> None:
        async with aclosing(generation.events()) as events:
            async for _, delta in events:
                draft.add(delta)
        draft.end()
        await self._keep(draft)

    async def _work(
        self, draft: Draft, generation: Generation, told: list[Event] | None
    ) -> AsyncIterator[StoredResponse]:
        """Answer while nobody waits; yields the response as it is at each step. ``told`` takes its events."""
        made: list[Event] = [] if told is None else told
        try:
            async with aclosing(generation.events()) as events:
                async for _, delta in events:
                    made += draft.add(delta)
                    yield self._stored(draft, told)
            made += draft.end()
        except Exception as error:
            made += _fail(draft, error, KeyScope.OPEN)
        yield self._stored(draft, told)

    async def _events(self, draft: Draft, generation: Generation, caller: KeyScope) -> AsyncIterator[bytes]:
        yield encode_named(draft.begin())
        try:
            async with aclosing(generation.events()) as events:
                async for _, delta in events:
                    made = draft.add(delta)
                    if made:
                        yield encode_named(made)
            *last, terminal = draft.end()
            yield encode_named(last)
            await self._keep(draft)
            yield encode_named([{**terminal, "response": draft.response()}])
        except Exception as error:
            yield encode_named(_fail(draft, error, caller))
        yield DONE


async def told(parts: AsyncIterator[list[Event]]) -> AsyncIterator[bytes]:
    """A stream of events that are there, or come; and its end."""
    async for events in parts:
        yield encode_named(events)
    yield DONE


async def nothing() -> None:
    """End nothing: what others follow goes on."""


def _fail(draft: Draft, error: Exception, caller: KeyScope) -> list[Event]:
    answer = error_answer(error, caller)
    if answer.kind.status >= 500:
        logger.exception("fault in a response", exc_info=error)
    told = answer.body["error"]
    return draft.fail(str(told["code"] or told["type"]), str(told["message"]))


def _turns(messages: Sequence[Message]) -> list[int]:
    """Where the turns of the user begin: at these places a conversation may be cut off."""
    return [index for index, message in enumerate(messages) if message.role == "user"]
