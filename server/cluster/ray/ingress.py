"""The ingress: takes a request in, has a replica answer it, and passes the answer on byte for byte."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from time import monotonic
from typing import Any, TypeAlias, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import Message, Receive, Scope, Send

from manylora.server.cluster.answer_end import AnswerEnd
from manylora.server.cluster.asgi_call import RawRequest
from manylora.server.cluster.asked import Asked, read_asked
from manylora.server.cluster.incoming import Hung, read_request
from manylora.server.cluster.ray.call import Call
from manylora.server.cluster.ray.gathering import (
    gathered_in_time,
    is_for_all,
    is_gathered,
    refusal_elsewhere,
)
from manylora.server.errors import BodyTooLarge
from manylora.server.options.settings import Settings

Stream: TypeAlias = "DeploymentResponseGenerator[list[Message]]"

logger = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds without a replica after which a request is refused
_ATTEMPTS = 3  # at requests that a replica lost before it answered anything
_LOOK_SECONDS = 0.5
# What may be asked again of another replica when one was lost: it changes nothing, or nothing but usage.
_REPEATABLE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/score",
    "/v1/rerank",
    "/v1/tokenize",
    "/v1/detokenize",
)


class Ingress:
    """An ASGI application in front of the replicas of one deployment."""

    def __init__(self, handle: DeploymentHandle[Any], settings: Settings) -> None:
        self._handle = handle
        self._settings = settings
        self._base = settings.model_name
        self._errands: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            end = AnswerEnd(scope, send)
            try:
                request = await read_request(scope, receive, self._settings.max_upload_bytes)
            except BodyTooLarge as error:
                await end.refuse(error)
            except Hung:
                return
            else:
                await self._serve(request, receive, end)

    async def _serve(self, request: RawRequest, receive: Receive, end: AnswerEnd) -> None:
        """Answer a request, for as long as its client is there."""
        work = asyncio.ensure_future(self._answer(request, end))
        watcher = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, watcher):
                task.cancel()
            await asyncio.gather(work, watcher, return_exceptions=True)

    async def _answer(self, request: RawRequest, end: AnswerEnd) -> None:
        asked = read_asked(request.path, request.body, self._base)
        repeatable = request.method in ("GET", "HEAD") or request.path in _REPEATABLE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._once(request, asked, end)
                return
            except (RayActorError, DeploymentUnavailableError) as error:
                logger.warning("a replica is lost: %s", str(error).partition("\n")[0])
                if end.begun or not repeatable or attempt == _ATTEMPTS:
                    await end.lost()
                    return
            except TimeoutError:
                await end.unavailable()
                return

    async def _once(self, request: RawRequest, asked: Asked, end: AnswerEnd) -> None:
        """Have one replica answer."""
        call = Call(request, asked)
        async with aclosing(self._messages(call, end)) as messages:
            if is_gathered(request.method, request.path):
                await self._gather(request.path, messages, call, end)
            elif is_for_all(request.method, request.path):
                answer = [message async for message in messages]
                for message in await refusal_elsewhere(call, self._handle) or answer:
                    await end.send(message, call.note.replica)
            else:
                async for message in messages:
                    await end.send(message, call.note.replica)
                    if end.complete:  # the replica ends the call by itself
                        break
        if not end.complete:
            await end.lost()

    async def _messages(self, call: Call, end: AnswerEnd) -> AsyncGenerator[Message, None]:
        """What a replica answers. However this ends, nothing keeps running there."""
        stream: Stream = self._handle.options(stream=True).answer.remote(call)
        ended = False
        try:
            async with aclosing(_with_patience(stream, call)) as batches:
                async for batch in batches:
                    self._send_prefetches(call)
                    for message in batch:
                        yield message
            ended = True
        finally:
            if not (ended or end.complete):
                stream.cancel()
                self._run(self._hang_up(call))

    async def _gather(
        self, path: str, messages: AsyncGenerator[Message, None], call: Call, end: AnswerEnd
    ) -> None:
        """Answer with what all replicas say, once one has found that the caller may know."""
        answer = [message async for message in messages]
        if answer and answer[0]["status"] == 200:
            own = b"".join(message.get("body", b"") for message in answer[1:])
            await end.send_whole(
                answer[0], await gathered_in_time(path, own, self._handle), call.note.replica
            )
        else:
            for message in answer:
                await end.send(message, call.note.replica)

    def _send_prefetches(self, call: Call) -> None:
        orders, call.note.prefetch = call.note.prefetch, []
        for replica, name in orders:
            self._run(self._prefetch(Call(None, Asked((name,)), target=replica)))

    async def _prefetch(self, call: Call) -> None:
        await self._handle.prefetch.remote(call)

    async def _hang_up(self, call: Call) -> None:
        """Tell the replica itself: cancelling by Ray alone misses some calls."""
        if call.note.replica is not None:
            await self._handle.hang_up.remote(Call(target=call.note.replica, key=call.key))

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        """Do something beside requests: in a context of its own, or Ray would cancel it with the request."""
        task = asyncio.get_running_loop().create_task(_quietly(errand), context=contextvars.Context())
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


async def _quietly(errand: Coroutine[Any, Any, None]) -> None:
    try:
        await errand
    except Exception as error:  # the replica is gone, or the whole application is ending
        logger.debug("nobody took an errand: %s", error)


async def _with_patience(stream: Stream, call: Call) -> AsyncGenerator[list[Message], None]:
    """The batches of a stream. TimeoutError if no replica takes the call; then it may take any time."""
    first = asyncio.ensure_future(cast("Coroutine[Any, Any, list[Message]]", stream.__anext__()))
    until = monotonic() + PATIENCE
    try:
        while not (await asyncio.wait({first}, timeout=_LOOK_SECONDS))[0]:
            if call.note.replica is None and monotonic() > until:
                raise TimeoutError
        try:
            batch = first.result()
        except StopAsyncIteration:
            return
        yield batch
    finally:
        first.cancel()
    async for batch in stream:
        yield batch


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        kind = message["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return
