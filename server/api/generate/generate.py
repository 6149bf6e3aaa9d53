"""One request from its model string to its answer: resolve, read, admit, submit, respond."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from manylora.adapters.errors import AdapterError, AdapterNotFound, ArtifactError, MixError, SourceMissing
from manylora.adapters.mix import parse_mix
from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.server.api.access.scopes import ADDED_HEADERS, caller_tenant, least_priority
from manylora.server.api.access.views import names_of
from manylora.server.api.generate.generation import Generation, submit
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.error_context import Blamed, unavailable
from manylora.server.api.request.mix_entries import first_missing
from manylora.server.api.request.mix_request import ENTRIES, MixRequest
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import FinishReason
from manylora.server.errors import AdapterUnavailable, RequestError
from manylora.server.experiments.experiments import AnswerCounter
from manylora.server.model.text.conventions import MixMember, TextConventions
from manylora.server.names.view import View
from manylora.server.residency.held_mix import HeldMix
from manylora.server.service import Service
from manylora.server.tenants.limit_headers import LimitHeaders


@dataclass(frozen=True)
class Resolved:
    """What answers a request: revisions that are held, and the conventions they read and write."""

    mix: MixRequest
    held: HeldMix
    conventions: TextConventions
    tenant: TenantRecord | None = None  # who asks
    least: int | None = None  # priority that the caller's requests may have at least; None: any


class Endpoint(Protocol):
    """What one route does its own way; made for one request."""

    @property
    def classifies(self) -> bool:
        """Whether it asks for classes, not for text."""

    @property
    def input_param(self) -> str:
        """The parameter to blame for too many answers at once."""

    async def requests(self, conventions: TextConventions) -> Sequence[GenerateRequest]:
        """What the engine is asked: one request for each prompt, all with the same id."""

    async def respond(self, request: Request, generation: Generation) -> Response:
        """Answer with what is generated. This, or the response when it ends, closes the generation."""


async def generate(service: Service, request: Request, mix: MixRequest, endpoint: Endpoint) -> Response:
    """Answer a request. Nothing is sent before a response is returned, so every fault has its own status.

    Raises:
        RequestError: the request itself is at fault.
        AdapterNotFound, AdapterTooLarge, MixError: the mix can't be served.
        AdapterUnavailable: the files of a registered adapter can't be read any more.
        ClientDisconnect: the client left before its answer began.
        QueueFull, EngineDead, ContextTooLong: the engine doesn't take the prompts.
    """
    async with resolved(service, request, mix, classify=endpoint.classifies) as found:
        requests = await endpoint.requests(found.conventions)
        generation = await _submit_counted(service, request, found, requests, endpoint.input_param)
        owner = "" if found.tenant is None else found.tenant.id
        service.adapters.experiments.remember(requests[0].request_id, found.held, owner)
    return await endpoint.respond(request, generation)


@asynccontextmanager
async def resolved(
    service: Service,
    request: Request,
    mix: MixRequest,
    *,
    classify: bool | None = False,
    embed: bool = False,
) -> AsyncGenerator[Resolved, None]:
    """Name -> revision: happens here, once. The revisions are held until the end of the block.

    Args:
        service: the server.
        request: whose client may leave while an unknown name is looked up.
        mix: what is asked for.
        classify: whether classes are asked for, or text; None for what both kinds of adapters can do.
        embed: whether a text is only read, which also adapters do that write none.

    Raises:
        RequestError: what is named does the other of the two.
        AdapterNotFound, AdapterTooLarge, MixError: the mix can't be served.
        AdapterUnavailable: the files of a registered adapter can't be read any more.
        ClientDisconnect: the client left.
    """
    resolver = service.adapters.resolver
    tenant, least = caller_tenant(request.scope), least_priority(request.scope)
    if tenant is not None and tenant.settings.default_adapter is not None and not mix.terms:
        mix = replace(mix, terms=parse_mix(tenant.settings.default_adapter))
    view = names_of(service, tenant)
    async with AsyncExitStack() as stack:
        try:
            if not resolver.knows(mix.terms, view):
                await unless_disconnected(request, resolver.look_up(mix.terms, view))
            held = await stack.enter_async_context(
                resolver.resolve(mix.terms, user=mix.user, as_asked=mix.as_asked, view=view)
            )
        except AdapterError as error:
            raise Blamed(error, _param_of(service, mix, error, view)) from error
        _tell_limits(request, held)
        found = Resolved(mix, held, await _conventions(service, mix, held), tenant, least)
        _check_task(found, classify)
        if classify is False and not embed and found.conventions.embeds:
            raise RequestError(
                f"'{held.served_model}' embeds and writes no text (task_type FEATURE_EXTRACTION): use "
                "/v1/embeddings",
                mix.param,
                "unsupported_task",
            )
        yield found


def _tell_limits(request: Request, held: HeldMix) -> None:
    """Have the answer, a refusal as well, tell what is left of limits with the adapters that it runs with."""
    headers = request.scope.get(ADDED_HEADERS)
    if isinstance(headers, LimitHeaders):
        headers.use(held.revisions.names)


def _param_of(service: Service, mix: MixRequest, error: AdapterError, view: View | None) -> str:
    """The parameter to blame: of a list of adapters, the entry that was not found."""
    if mix.param == ENTRIES and isinstance(error, AdapterNotFound):
        return first_missing(service.adapters.resolver, mix.terms, mix.param, view)
    return mix.param


def _check_task(found: Resolved, classify: bool | None) -> None:
    held, param, classes = found.held, found.mix.param, found.conventions.classes
    _check_prompt(found)
    name = "the base model" if not found.mix.terms else f"'{held.served_model}'"
    if classify is False and classes is not None:
        raise RequestError(f"{name} classifies and writes no text: use /classify", param, "unsupported_task")
    if classify and classes is None:
        raise RequestError(
            f"{name} has no classes: name an adapter that was trained to classify (task_type SEQ_CLS)",
            param,
            "unsupported_task",
        )
    if classify and held.entries and held.entries[0][1] != 1.0:
        raise RequestError(f"{name}: an adapter that classifies has no strength but 1", param)


def _check_prompt(found: Resolved) -> None:
    """A soft prompt stands before the text or it doesn't: half of one means nothing."""
    member = found.conventions.prompt
    for revision, weight in found.held.entries:
        if member is not None and revision.digest == member.digest and weight != 1.0:
            raise RequestError(
                f"'{member.label}' puts virtual tokens before the text: its weight must be 1, not {weight}",
                found.mix.param,
            )


async def _conventions(service: Service, mix: MixRequest, held: HeldMix) -> TextConventions:
    if held.is_base:
        return service.conventions.base
    labels = [part.partition("*")[0].removesuffix(".merged") for part in held.served_model.split("+")]
    members = []
    for revision in held.members:
        short = revision.digest[:8]
        label = next((label for label in labels if label.endswith(f"@{short}")), short)
        members.append(MixMember(label, revision.digest))
    try:
        unread = service.conventions.unread(revision.digest for revision in held.members)
        if unread or any(revision.pages is None for revision in held.members):
            await service.adapters.refetcher.ensure_on_disk(held, unread)
        return await service.conventions.of(members)
    except MixError as error:
        raise Blamed(error, mix.param) from error
    except (ArtifactError, AdapterNotFound, SourceMissing, OSError) as error:
        counting = _counting(service, mix, held)
        if counting is not None:
            counting.failed(FinishReason.ERROR, 1)
        raise unavailable(held.served_model, error) from error


async def _submit_counted(
    service: Service, request: Request, found: Resolved, prompts: Sequence[GenerateRequest], param: str
) -> Generation:
    """Submit the prompts. What keeps them from it counts as their end, unless it is the request's fault."""
    counting = _counting(service, found.mix, found.held)
    ended = None if counting is None else counting.ended
    try:
        generation = await submit(
            service,
            found.held,
            prompts,
            ended,
            tenant=found.tenant,
            least=found.least,
            param=param,
            request=request,
        )
    except (ClientDisconnect, AdapterUnavailable, AdapterError) as error:
        if counting is not None:
            left = isinstance(error, ClientDisconnect)
            counting.failed(FinishReason.ABORT if left else FinishReason.ERROR, sum(p.n for p in prompts))
        raise
    if counting is not None:
        counting.submitted()
    return generation


def _counting(service: Service, mix: MixRequest, held: HeldMix) -> AnswerCounter | None:
    """What counts the answers for the arm of an alias; None if there is nothing to count."""
    if held.arm is None or not mix.counted:
        return None
    return service.adapters.experiments.counter(held.arm)
