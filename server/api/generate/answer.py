"""One answer over HTTP: submit, then either stream chunks or wait for the whole, with the same format."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from manylora.adapters.errors import AdapterError
from manylora.server.api.generate.generate import Asked, Generation, start
from manylora.server.api.generate.schemas import GenerationBody
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.event_stream import EventStream, stream_events
from manylora.server.api.http.json_response import Json
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta, FinishReason
from manylora.server.errors import AdapterUnavailable
from manylora.server.service import Service


class AnswerFormat(ABC):
    """The shape of one endpoint's answers. Made for one request; sees each delta once, in order.

    A stream calls :meth:`chunks` for each delta and :meth:`last_chunks` at the end; a whole answer calls
    :meth:`add` for each and :meth:`whole` at the end.
    """

    def __init__(
        self, service: Service, body: GenerationBody, requests: Sequence[GenerateRequest], kind: str
    ) -> None:
        own = requests[0].tokenizer
        self.tokenizer = service.tokenizer if own is None else own
        self.requests = requests
        self.stream = bool(body.stream)
        self.n = requests[0].n
        self.prompt_tokens = sum(len(request.prompt_ids) for request in requests)
        self.completion_tokens = 0
        self.cached: dict[int, int] = {}  # prompt -> tokens its first answer took from the prefix cache
        options = body.stream_options
        self.include_usage = options is not None and bool(options.include_usage)
        self.head: dict[str, Any] = {
            "id": requests[0].request_id,
            "object": kind,
            "created": int(time.time()),
            "model": body.model,  # until it is known which revisions answer
            "system_fingerprint": f"fp_{str(service.description['fingerprint'])[:12]}",
        }

    def count(self, choice: int, delta: Delta) -> None:
        """Count the tokens of ``delta``. Prompts count once, however many answers they get."""
        self.completion_tokens += len(delta.token_ids)
        if delta.cached_tokens and delta.index == 0:
            self.cached[choice // self.n] = delta.cached_tokens

    def usage(self) -> dict[str, Any]:
        """The ``usage`` object in OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """One chunk of a stream. With ``include_usage`` all but the last say ``usage: null``."""
        if self.include_usage:
            return {**self.head, "choices": choices, "usage": usage}
        return {**self.head, "choices": choices}

    def last_chunks(self) -> list[dict[str, Any]]:
        """What follows the last choice's end."""
        return [self.chunk([], self.usage())] if self.include_usage else []

    @abstractmethod
    def chunks(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks that ``delta`` makes; none while its text is held back."""

    @abstractmethod
    def add(self, choice: int, delta: Delta) -> None:
        """Gather ``delta`` for the whole answer."""

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """The choices of the whole answer."""

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        return {**self.head, "choices": self.choices(), "usage": self.usage()}


def new_id(prefix: str) -> str:
    """An id for one answer, such as ``chatcmpl-1b9d…``."""
    return f"{prefix}-{uuid4().hex}"


async def answer(service: Service, request: Request, asked: Asked, form: AnswerFormat) -> Response:
    """Generate and answer what ``form`` was made for.

    Until this returns nothing has been sent, so every fault has its own status.

    Raises:
        ClientDisconnect: the client left before its answer began.
        As :func:`start`; GenerationFailed and EngineDead for an answer that is not streamed.
    """
    generation = await begin(service, request, asked, form.requests)
    service.adapters.experiments.remember(form.head["id"], generation.model, asked.resolution)
    form.head["model"] = generation.model
    headers = model_header(generation)
    if form.stream:
        events = stream_events(generation, form)
        return EventStream(events, generation.aclose, headers, service.config.shutdown_timeout)
    try:
        await unless_disconnected(request, _gather(generation, form))
        return Json(form.whole(), headers=headers)
    finally:
        await generation.aclose()


async def begin(
    service: Service, request: Request, asked: Asked, prompts: Sequence[GenerateRequest], param: str = "n"
) -> Generation:
    """Start the answers; what keeps them from it counts as theirs, unless it was the request's own fault.

    Raises:
        ClientDisconnect: the client left while the request waited for adapters.
        As :func:`start`.
    """
    answering = service.adapters.experiments.begin(asked.arm)
    starting = start(service, asked, prompts, None if answering is None else answering.ended, param=param)
    waits = asked.resolution is not None  # for adapters that are not on the device
    try:
        generation = await (unless_disconnected(request, starting) if waits else starting)
    except (ClientDisconnect, AdapterUnavailable, AdapterError) as error:
        if answering is not None:
            left = isinstance(error, ClientDisconnect)
            reason = FinishReason.ABORT if left else FinishReason.ERROR
            answering.failed(reason, sum(prompt.n for prompt in prompts))
        raise
    if answering is not None:
        answering.begun()
    return generation


def model_header(generation: Generation) -> dict[str, str]:
    """The header that names the revisions which answer."""
    return {"x-manylora-model": quote(generation.model, safe="@*+:/-._ ")}  # the base's may be any text


async def _gather(generation: Generation, form: AnswerFormat) -> None:
    async with aclosing(generation.events()) as events:
        async for choice, delta in events:
            form.add(choice, delta)
