"""``POST /v1/compare``: the same prompts under several models, side by side and token by token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from manylora.server.api.access.scopes import TENANT, caller_scope, needs
from manylora.server.api.compare.body import CompareBody
from manylora.server.api.compare.comparison import Comparison
from manylora.server.api.compare.plan import plan_comparison
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.event_stream import EventStream, encode, with_last_events
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_COMPARISONS
from manylora.server.api.http.openapi import ADAPTER_OR_BASE, BASE, STREAMED, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.errors import QueueFull

router = APIRouter(tags=["compare"])

_RETRY_SECONDS = 5.0
_EXAMPLES = {
    "base and adapter": example(
        "The base model and an adapter",
        {
            "targets": [BASE, ADAPTER_OR_BASE],
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 32,
        },
    )
}


class ComparisonLimit:
    """Bounds how many comparisons run at the same time: each holds up to 64 MiB of logits."""

    def __init__(self) -> None:
        self.running = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more comparison within the block.

        Raises:
            QueueFull: as many run as may.
        """
        if self.running >= MAX_COMPARISONS:
            raise QueueFull(f"{self.running} comparisons are running; try again later", _RETRY_SECONDS)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


@router.post(
    "/v1/compare",
    summary="Compare models",
    responses=STREAMED,
    openapi_extra=documented(CompareBody, _EXAMPLES),
)
@needs(TENANT)
async def compare(
    request: Request,
    service: ServiceState,
    body: Annotated[CompareBody, Depends(parse_body(CompareBody, rules_of(Place.COMPARE).sift))],
) -> Response:
    """Let 2 to 8 targets answer, and score one reference under all of them; with progress as a stream."""
    async with AsyncExitStack() as stack:
        stack.enter_context(request.app.state.comparison_limit.counted())
        plan = await plan_comparison(service, request, body, stack)
        comparison = Comparison(service, plan, stack.pop_all())
    try:
        await unless_disconnected(request, comparison.begun())
        if not body.stream:
            result = await unless_disconnected(request, comparison.result())
            await comparison.aclose()
            return Json(result)
    except BaseException:
        await comparison.aclose()
        raise
    events = with_last_events(_events(comparison), caller_scope(request.scope))
    return EventStream(events, comparison.aclose, {})


async def _events(comparison: Comparison) -> AsyncGenerator[bytes, None]:
    async with aclosing(comparison.progress()) as states:
        async for state in states:
            yield encode(state)
    result = await comparison.result()
    await comparison.aclose()  # whoever has the result finds everything free again
    yield encode(result)
