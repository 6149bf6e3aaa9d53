"""One answer over HTTP: streamed in chunks, or gathered and sent as a whole, in the same format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request, Response

from manylora.server.api.access.scopes import caller_scope
from manylora.server.api.generate.generation import Generation
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.event_stream import EventStream, stream_events
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.model_header import model_header
from manylora.server.api.request.schemas import GenerationBody
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta
from manylora.server.service import Service


class AnswerFrame:
    """What the answers of all generating routes have in common: ids, the model, counts of tokens."""

    def __init__(
        self,
        service: Service,
        body: GenerationBody,
        requests: Sequence[GenerateRequest],
        *,
        kind: str,
        model: str,
    ) -> None:
        """``kind`` is the value of "object"; ``model`` is what answers, by revision."""
        self.n = requests[0].n
        self.num_choices = len(requests) * self.n
        self.prompt_tokens = sum(len(request.prompt_ids) for request in requests)
        self.completion_tokens = 0
        self.reasoning_tokens: int | None = None  # None: answers have no reasoning apart
        self.cached: dict[int, int] = {}  # prompt -> tokens its first answer took from the prefix cache
        options = body.stream_options
        self.include_usage = options is not None and bool(options.include_usage)
        self.usage_in_all = options is not None and bool(options.continuous_usage_stats)
        self.head: dict[str, Any] = {
            "id": requests[0].request_id,
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{str(service.description['fingerprint'])[:12]}",
        }

    def count(self, choice: int, delta: Delta) -> None:
        """Count the tokens of ``delta``. Prompts count once, however many answers they get."""
        self.completion_tokens += len(delta.token_ids)
        if delta.cached_tokens and delta.index == 0:
            self.cached[choice // self.n] = delta.cached_tokens

    def usage(self) -> dict[str, Any]:
        """The ``usage`` object in OpenAI's shape."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """One chunk of a stream.

        With ``include_usage`` all but the last say ``usage: null``, or the usage so far if that is wanted.
        """
        if self.include_usage:
            usage = self.usage() if self.usage_in_all else usage
            return {**self.head, "choices": choices, "usage": usage}
        return {**self.head, "choices": choices}

    def last_chunks(self) -> list[dict[str, Any]]:
        """What follows the last choice's end."""
        return [self.chunk([], self.usage())] if self.include_usage else []

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        return {**self.head, "choices": choices, "usage": self.usage()}


class AnswerFormat(Protocol):
    """The shape of one route's answers. Made for one request; sees each delta once, in order.

    A stream calls :meth:`chunks` for each delta and :meth:`last_chunks` at the end; a whole answer calls
    :meth:`add` for each and :meth:`whole` at the end.
    """

    def chunks(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks that ``delta`` makes; none while its text is held back."""

    def last_chunks(self) -> list[dict[str, Any]]:
        """The chunks after the last choice's end."""

    def add(self, choice: int, delta: Delta) -> None:
        """Gather ``delta`` for the whole answer."""

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""


async def respond(request: Request, generation: Generation, form: AnswerFormat, *, stream: bool) -> Response:
    """Answer in the shape of ``form``. The generation is closed when the answer has ended, however it does.

    Raises:
        ClientDisconnect: the client left before the whole answer was there.
        GenerationFailed, EngineDead: it can't be completed, and is not streamed.
    """
    headers = model_header(generation.model)  # the base's name may be any text
    if stream:
        events = stream_events(generation, form, caller_scope(request.scope))
        return EventStream(events, generation.aclose, headers)
    try:
        await unless_disconnected(request, _gather(generation, form))
        return Json(form.whole(), headers=headers)
    finally:
        await generation.aclose()


async def _gather(generation: Generation, form: AnswerFormat) -> None:
    async with aclosing(generation.events()) as events:
        async for choice, delta in events:
            form.add(choice, delta)
