"""What every generation endpoint does: name -> mix, lease, submit, and the events of all its sequences."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import anyio
from fastapi import Request

from manylora.adapters.errors import (
    AdapterNameError,
    AdapterNotFound,
    ArtifactError,
    MixError,
    SourceMissing,
)
from manylora.adapters.mix import MixTerm, parse_mix
from manylora.server.api.generate.mix_entries import blaming_entries, terms_of
from manylora.server.api.generate.schemas import AdapterWeight
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.error_context import blame, unavailable
from manylora.server.engine.async_engine import Ended, GenerateRequest, Stream
from manylora.server.engine.sequence import Delta, FinishReason
from manylora.server.errors import EngineDead, GenerationFailed, ModelNotFound, RequestError
from manylora.server.model.languages import Language, Speaker
from manylora.server.names.aliases import Arm
from manylora.server.names.manager import AdapterManager
from manylora.server.residency.lease import Lease, Resolution
from manylora.server.service import Service

logger = logging.getLogger(__name__)

ENTRIES = "adapters"  # the parameter that lists a mix's entries


@dataclass(frozen=True, slots=True)
class AskedMix:
    """What the request asks to run with, and the parameter that says so."""

    terms: tuple[MixTerm, ...]  # empty for the base model
    param: str = "model"
    user: str | None = None  # who gets always the same arm of an alias
    counted: bool = True  # for the arm
    as_asked: bool = False  # no automatically merged copy in its place


def asked_mix(
    service: Service, model: str, adapters: Sequence[AdapterWeight] | None = None, user: str | None = None
) -> AskedMix:
    """Read the model string, or ``adapters`` beside the base model.

    Raises:
        ModelNotFound: ``model`` is not a name that could exist.
        RequestError, MixError, AdapterNameError: malformed; answered with the right ``param``.
    """
    if adapters:
        if model != service.model_name:
            raise RequestError(
                f"'adapters' goes with the base model: 'model' must be '{service.model_name}'", ENTRIES
            )
        return AskedMix(terms_of(adapters, ENTRIES), ENTRIES, user)
    if model == service.model_name:
        return AskedMix(())
    try:
        return AskedMix(parse_mix(model), user=user)
    except AdapterNameError:
        if set(model) & set("+*@"):
            raise
        raise ModelNotFound(f"The model '{model[:200]}' does not exist") from None


def salt_of(cache_salt: str | None) -> bytes:
    """The root that keeps tenants apart in the prefix cache; b"" is shared by all who give none."""
    return b"" if cache_salt is None else hashlib.blake2b(cache_salt.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Asked:
    """What answers a request: revisions that are referenced, and the language they read and write."""

    mix: AskedMix
    resolution: Resolution | None  # None for the base model
    language: Language

    @property
    def arm(self) -> Arm | None:
        """What this counts for."""
        return None if self.resolution is None or not self.mix.counted else self.resolution.arm


@asynccontextmanager
async def resolved(
    service: Service, request: Request, mix: AskedMix, *, classify: bool | None = False
) -> AsyncGenerator[Asked, None]:
    """Name -> revision: happens here, once. The references end with the block, unless a lease has them.

    Args:
        classify: whether classes are asked for, or text; None for what both kinds of adapters can do.

    Raises:
        RequestError: what is named does the other of the two.
        AdapterNotFound, AdapterTooLarge, MixError: the mix can't be served.
        ClientDisconnect: the client left while an unknown name was looked up.
        AdapterUnavailable: the files of a registered adapter can't be read any more.
    """
    if not mix.terms:
        asked = Asked(mix, None, service.languages.base)
        _check_task(asked, classify)
        yield asked
        return
    resolution = await _resolve(service.adapters, request, mix)
    try:
        asked = Asked(mix, resolution, await _language(service, mix, resolution))
        _check_task(asked, classify)
        yield asked
    finally:
        if not resolution.leased:
            service.adapters.drop(resolution)


def _check_task(asked: Asked, classify: bool | None) -> None:
    resolution, param = asked.resolution, asked.mix.param
    name = "the base model" if resolution is None else f"'{resolution.served_model}'"
    if classify is False and asked.language.classes is not None:
        raise RequestError(f"{name} classifies and writes no text: use /classify", param, "unsupported_task")
    if classify and asked.language.classes is None:
        raise RequestError(
            f"{name} has no classes: name an adapter that was trained to classify (task_type SEQ_CLS)",
            param,
            "unsupported_task",
        )
    if classify and resolution is not None and resolution.entries[0][1] != 1.0:
        raise RequestError(f"{name}: an adapter that classifies has no strength but 1", param)


async def _resolve(manager: AdapterManager, request: Request, mix: AskedMix) -> Resolution:
    listed = mix.param == ENTRIES
    with blame(mix.param), blaming_entries(manager, mix.terms if listed else (), mix.param):
        work = manager.resolve(mix.terms, user=mix.user, as_asked=mix.as_asked)
        return await (work if manager.knows(mix.terms) else unless_disconnected(request, work))


async def _language(service: Service, mix: AskedMix, resolution: Resolution) -> Language:
    labels = [part.partition("*")[0].removesuffix(".merged") for part in resolution.served_model.split("+")]
    speakers = []
    for revision in resolution.members:
        short = revision.digest[:8]
        label = next((label for label in labels if label.endswith(f"@{short}")), short)
        speakers.append(Speaker(label, revision.digest))
    try:
        unread = service.languages.unread(revision.digest for revision in resolution.members)
        await service.adapters.ensure_on_disk(resolution, unread)
        with blame(mix.param, MixError):
            return await service.languages.of(speakers)
    except (ArtifactError, AdapterNotFound, SourceMissing, OSError) as error:
        answering = service.adapters.experiments.begin(resolution.arm if mix.counted else None)
        if answering is not None:
            answering.failed(FinishReason.ERROR, 1)
        raise unavailable(resolution.served_model, error) from error


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
            GenerationFailed, EngineDead: a sequence ended by no fault of the request.
        """
        merged = _one(self.streams[0]) if len(self.streams) == 1 else _merge(self.streams)
        ended = 0
        async with aclosing(merged):
            async for prompt, delta in merged:
                if delta.finish_reason is FinishReason.ERROR:
                    logger.error("generation failed: %s", delta.error)
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


async def start(
    service: Service,
    asked: Asked,
    prompts: Sequence[GenerateRequest],
    ended: Ended | None = None,
    *,
    param: str = "n",
) -> Generation:
    """Take the adapters, waiting for cold ones, and hand every prompt to the engine; all or nothing.

    Args:
        ended: hears of each answer that has ended.
        param: the parameter to blame for too many answers at once.

    Raises:
        RequestError: more answers than the server takes.
        AdapterUnavailable: a registered adapter can't be loaded any more.
        QueueFull, EngineDead, ContextTooLong: the engine doesn't take the prompts.
    """
    wanted = sum(prompt.n for prompt in prompts)
    if wanted > service.engine.max_open:
        raise RequestError(
            f"this request asks for {wanted} answers at once, the server takes {service.engine.max_open}",
            param,
        )
    leases: list[Lease] = []
    streams: list[Stream] = []
    try:
        if asked.resolution is None:
            leases.append(service.adapters.base_lease())
        else:
            await _take(service.adapters, asked.resolution, leases)
        leases.extend(leases[0].share() for _ in prompts[1:])
        for prompt, lease in zip(prompts, leases, strict=True):
            streams.append(service.engine.submit(prompt, lease, ended))
    except BaseException:
        for lease in leases[len(streams) :]:
            lease.release()
        await Generation(streams, prompts, "").aclose()
        raise
    return Generation(streams, prompts, leases[0].served_model)


async def _take(manager: AdapterManager, resolution: Resolution, leases: list[Lease]) -> None:
    """Append the lease of the mix to ``leases``, whose owner releases it even if this is cancelled then."""
    try:
        leases.append(await manager.lease(resolution))
    except (ArtifactError, SourceMissing, OSError) as error:
        raise unavailable(resolution.served_model, error) from error


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
