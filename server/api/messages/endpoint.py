"""One request of the Messages API: the chat that it comes to, and how it is answered."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final
from uuid import uuid4

from fastapi import Request, Response
from sse_starlette.event import ServerSentEvent
from starlette.types import Scope

from manylora.server.api.access.scopes import caller_scope
from manylora.server.api.generate.answer import AnswerFrame, respond
from manylora.server.api.generate.chat import ChatEndpoint
from manylora.server.api.generate.generation import Generation
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.event_stream import EventStream, encode_named, fault_events
from manylora.server.api.http.model_header import model_header
from manylora.server.api.messages.answer import MessageAnswer
from manylora.server.api.messages.schemas import CountTokensBody, MessagesBody
from manylora.server.api.messages.wording import WORDING
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import Service

logger = logging.getLogger(__name__)

# Coding tools look for these words to see that a conversation has to be shortened.
_TOO_LONG: Final = "prompt is too long"


class MessagesEndpoint:
    """Answers one request; an endpoint of :func:`~manylora.server.api.generate.generate.generate`."""

    classifies = False
    input_param = "messages"

    def __init__(self, service: Service, body: MessagesBody, ignored: list[str]) -> None:
        """
        Args:
            service: the server.
            body: what was asked for.
            ignored: takes the paths of fields that did nothing.

        Raises:
            RequestError: the conversation, the tools or the format are malformed.
        """
        self._service, self._body, self._ignored = service, body, ignored
        self._told: list[str] = []  # the same in the words of chats
        self._chat_body = body.for_chat()
        with WORDING.used():
            self._chat = ChatEndpoint(
                service, self._chat_body, body.max_tokens, "max_tokens", self._told, as_fits=True
            )
        self._requests: list[GenerateRequest] = []

    async def requests(self, conventions: TextConventions) -> Sequence[GenerateRequest]:
        """The conversation in tokens."""
        check_thinking(self._body, conventions)
        try:
            with WORDING.used():
                found = await self._chat.requests(conventions)
        except ContextTooLong as error:
            raise ContextTooLong(f"{_TOO_LONG}: {error}", error.param or "messages") from error
        self._ignored.extend(map(WORDING.path, self._told))
        self._requests = [replace(found[0], request_id=f"msg_{uuid4().hex}")]
        return self._requests

    async def respond(self, request: Request, generation: Generation) -> Response:
        """The message, or the stream of its events."""
        frame = AnswerFrame(
            self._service, self._chat_body, self._requests, kind="message", model=generation.model
        )
        shortened = self._requests[0].params.max_tokens < self._body.max_tokens
        form = MessageAnswer(frame, self._chat.plan, shortened=shortened)
        if not self._body.stream:
            return await respond(request, generation, form, stream=False)
        events = _events(generation, form, request.scope)
        return EventStream(events, generation.aclose, model_header(generation.model), _ping)


def check_thinking(body: CountTokensBody, conventions: TextConventions) -> None:
    """Refuse ``thinking`` of a model that does none.

    Raises:
        RequestError: it is asked for, and the model does not mark any.
    """
    asked = body.thinking is not None and body.thinking.type == "enabled"
    if asked and conventions.answers.reasoning is None:
        raise RequestError(
            "'thinking' is not supported: this model marks no reasoning; leave it out, or send the type "
            "'disabled' or 'adaptive'",
            "thinking",
            "unsupported_parameter",
        )


async def _events(generation: Generation, form: MessageAnswer, scope: Scope) -> AsyncIterator[bytes]:
    try:
        async with aclosing(generation.events()) as events:
            async for choice, delta in events:
                made = form.chunks(choice, delta)
                if made:
                    yield encode_named(made)
        *before, last = form.last_chunks()
        yield encode_named(before)
        yield encode_named([last])
    except Exception as error:
        answer = error_answer(error, caller_scope(scope))
        if answer.kind.status >= 500:
            logger.exception("fault in a stream")
        yield fault_events(answer, scope)


def _ping() -> ServerSentEvent:
    return ServerSentEvent('{"type": "ping"}', event="ping", sep="\n")
