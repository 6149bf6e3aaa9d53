"""``/v1/fine_tuning/jobs/{id}/events``: what happened to a job, in pages or as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import ENDED
from manylora.server.api.access.scopes import TENANT, CallerScope, CallerWhose, needs
from manylora.server.api.files.pages import page_answer
from manylora.server.api.fine_tuning.jobs import PageParameters, found_job
from manylora.server.api.fine_tuning.views import event_json
from manylora.server.api.http.event_stream import EventStream, encode, with_last_events
from manylora.server.api.http.state import ServiceState
from manylora.server.service import Service

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_LOOK_EVERY = 0.5  # seconds
_AT_ONCE = 200


class EventParameters(PageParameters):
    """Query parameters that say which events, and how."""

    stream: bool = Field(False, description="As server-sent events, from the first to the job's end.")


@router.get("/{job_id}/events", summary="Events of a job")
@needs(TENANT)
async def events(
    service: ServiceState,
    whose: CallerWhose,
    caller: CallerScope,
    job_id: str,
    asked: Annotated[EventParameters, Query()],
) -> Response:
    """What happened to a job: the newest first, a page at a time, or with ``stream`` as it happens."""
    job = await found_job(service, job_id, whose)
    if asked.stream:
        return EventStream(with_last_events(_follow(service, job), caller), _nothing, {})
    records = await asyncio.to_thread(
        lambda: service.tuning.events.page(job.id, after=asked.after, limit=asked.limit + 1)
    )
    return page_answer(records, asked.limit, event_json)


async def _follow(service: Service, job: JobRecord) -> AsyncGenerator[bytes, None]:
    """All events of a job until it has ended, the oldest first."""
    place = 0
    while True:
        now = await asyncio.to_thread(service.tuning.jobs.get, job.id)
        ended = now is None or now.status in ENDED
        while found := await asyncio.to_thread(service.tuning.events.since, job.id, place, _AT_ONCE):
            yield b"".join(encode(event_json(event)) for event in found)
            place = found[-1].number
        if ended:
            return
        await asyncio.sleep(_LOOK_EVERY)


async def _nothing() -> None:
    """Nothing keeps running behind the stream."""
