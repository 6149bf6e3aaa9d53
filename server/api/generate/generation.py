"""The sequences of one request while they run: submitted together, their events in order of arrival."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from time import monotonic

import anyio
from fastapi import Request

from manylora.adapters.errors import ArtifactError, SourceMissing
from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.server.api.generate.accounting import Account
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.error_context import unavailable
from manylora.server.api.request.mix_request import tenant_salt
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.clients import Client
from manylora.server.engine.order.turns import NO_TENANT, Asker
from manylora.server.engine.sequence import Delta, FinishReason
from manylora.server.engine.stream import Ended, Stream
from manylora.server.errors import EngineDead, GenerationFailed, RequestError
from manylora.server.residency.held_mix import HeldMix
from manylora.server.service import Service
from manylora.server.tracing.current import CURRENT_TRACE

logger = logging.getLogger(__name__)


class Generation:
    """All sequences of one HTTP request; choice ``i`` is answer ``i % n`` to prompt ``i // n``.

    Owns its engine streams: whoever holds one must call :meth:`aclose`, which aborts what still runs.
    """

    def __init__(self, streams: Sequence[Stream], requests: Sequence[GenerateRequest], model: str) -> None:
        self.streams = streams
        self.n = requests[0].n
        self.model = model  # what answers, by revision

    async def events(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Every delta with the index of its choice, as they come; ends when all choices have.

        Raises:
            RequestError: a grammar of the request is too much work to follow, or no token may follow.
            GenerationFailed, EngineDead: a sequence ended by no fault of the request.
        """
        merged = _one(self.streams[0]) if len(self.streams) == 1 else _merge(self.streams)
        ended = 0
        async with aclosing(merged):
            async for prompt, delta in merged:
                if delta.finish_reason is FinishReason.ERROR:
                    if delta.param is not None:
                        raise RequestError(f"'{delta.param}': {delta.error}", delta.param, delta.code)
                    logger.error("generation failed: %s", delta.error)
                    if self.streams[prompt].engine_died:
                        raise EngineDead("The engine has stopped; this answer was not completed")
                    raise GenerationFailed("The server failed while generating this answer")
                ended += delta.finish_reason is not None
                yield prompt * self.n + delta.index, delta
        if ended < len(self.streams) * self.n:
            raise EngineDead("The server stopped before this answer was complete")

    async def aclose(self) -> None:
        """Abort whatever still runs and give the adapters back. Idempotent; completes even if cancelled."""
        with anyio.CancelScope(shield=True):
            for stream in self.streams:
                await stream.aclose()


async def submit(
    service: Service,
    held: HeldMix,
    prompts: Sequence[GenerateRequest],
    ended: Ended | None = None,
    *,
    tenant: TenantRecord | None,
    least: int | None = None,
    param: str = "n",
    request: Request | None = None,
) -> Generation:
    """Admit the mix, waiting for cold adapters, and hand every prompt to the engine; all or nothing.

    Args:
        service: the server.
        held: resolved; the streams hold shares of their own.
        prompts: with the same ``n``.
        ended: hears of each answer that has ended.
        tenant: who asks, within limits and in turn, and shares cached prompts with nobody else.
        least: the priority that requests with the caller's key may have at least; None: any.
        param: the parameter to blame for too many answers at once.
        request: whose client may leave while adapters are waited for.

    Raises:
        RequestError: more answers than the server takes.
        AdapterUnavailable: a registered adapter can't be loaded any more.
        ClientDisconnect: the client left.
        QueueFull, EngineDead, ContextTooLong: the engine doesn't take the prompts.
        RateLimited: the tenant has taken all that it may for now.
    """
    wanted = sum(prompt.n for prompt in prompts)
    if wanted > service.engine.max_open:
        raise RequestError(
            f"this request asks for {wanted} answers at once, the server takes {service.engine.max_open}",
            param,
        )
    if least is not None:
        prompts = [replace(prompt, priority=_priority(prompt, least)) for prompt in prompts]
    asker = NO_TENANT
    if tenant is not None:
        client = Client(tenant.id, tenant.settings.weight)
        asker = Asker(client, held.revisions.label, prompts[0].priority or 0)
        prompts = [
            replace(prompt, salt=tenant_salt(tenant.id, prompt.salt), client=client) for prompt in prompts
        ]
    with (
        nullcontext()
        if tenant is None
        else await Account.open(service, tenant, held.revisions, prompts) as account
    ):
        trace, since = CURRENT_TRACE.get(), monotonic()
        if not held.try_admit(asker):
            await _admit(held, asker, request)
        if trace is not None:
            trace.admitted(held.served_model, held.revisions.label, since)
        streams: list[Stream] = []
        try:
            for prompt in prompts:
                told = ended if account is None else account.counting(prompt, ended)
                told = told if trace is None else trace.counting(told)
                streams.append(service.engine.submit(prompt, held.share(), told))
                if account is not None:
                    account.submitted(prompt)
        except BaseException:
            await Generation(streams, prompts, "").aclose()
            raise
    return Generation(streams, prompts, held.served_model)


def _priority(prompt: GenerateRequest, least: int) -> int:
    if prompt.priority is None:
        return max(0, least)
    if prompt.priority < least:
        raise RequestError(
            f"requests with this key have priority {least} or more, which is later; not {prompt.priority}",
            "priority",
        )
    return prompt.priority


async def _admit(held: HeldMix, asker: Asker, request: Request | None) -> None:
    work = held.admit(asker)
    try:
        await (work if request is None else unless_disconnected(request, work))
    except (ArtifactError, SourceMissing, OSError) as error:
        raise unavailable(held.served_model, error) from error


async def _one(stream: Stream) -> AsyncGenerator[tuple[int, Delta], None]:
    async for delta in stream:
        yield 0, delta


async def _merge(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of several streams in order of arrival, each with its stream's index."""
    queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for delta in stream:
                queue.put_nowait((index, delta))
            queue.put_nowait(None)
        except Exception as error:  # handed to the reader, who raises it
            queue.put_nowait(error)

    pumps = [asyncio.ensure_future(pump(index, stream)) for index, stream in enumerate(streams)]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for started in pumps:
            started.cancel()
