"""Routes for whoever operates the server: ``/health``, ``/ready``, ``/version`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from manylora.server.api.access.scopes import ADMIN, INFER, OPEN, TENANT, CallerScope, needs
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import EngineDead

router = APIRouter(tags=["operation"])


@router.get("/health", summary="Is the process alive?")
@needs(OPEN)
async def health(service: ServiceState) -> Response:
    """Answer 200 while the engine runs, and 503 once it has died: time to restart the process."""
    if not service.engine.alive:
        raise EngineDead("The engine has stopped")
    return Json({"status": "alive"})


@router.get("/ready", summary="Can it serve?")
@needs(OPEN)
async def ready(service: ServiceState) -> Response:
    """Answer 200 once the model and the adapters given at start are loaded; 503 before and while stopping."""
    if not (service.ready and service.engine.alive):
        return Json({"status": "not ready"}, status_code=503, headers={"retry-after": "1"})
    return Json({"status": "ready"})


@router.get("/version", summary="What is running?")
@needs(TENANT)
async def version_of_server(service: ServiceState, caller: CallerScope) -> Response:
    """The server's version, model, decoder, kernels, number format and device.

    Admins read also why others were not chosen, which may name files of the server.
    """
    hidden = set() if caller is ADMIN else {"kernels_note"}
    described = {name: fact for name, fact in service.description.items() if name not in hidden}
    return Json({"version": _package_version(), "model": service.model_name, **described})


def _package_version() -> str:
    try:
        return version("manylora")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
@needs(INFER)
async def metrics(service: ServiceState) -> Response:
    """The exposition that Prometheus scrapes: everything there is."""
    for_routers = service.vllm.exposition()
    text, content_type = await asyncio.to_thread(service.metrics.exposition)  # 0.2 s for 1,000 adapters
    return Response(text + for_routers, media_type=content_type)
