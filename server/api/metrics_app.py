"""``/metrics`` on an address of its own, for routers that ask many times a second and may know no key."""

from __future__ import annotations

import time
from typing import Final

from fastapi import APIRouter, Depends, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from manylora.adapters.errors import AdapterError
from manylora.server.api.access.guard import guard_for
from manylora.server.api.access.redaction import error_redactor
from manylora.server.api.access.scopes import INFER, OPEN, needs
from manylora.server.api.http.error_answers import answer_error
from manylora.server.api.operation import health
from manylora.server.errors import ServerError
from manylora.server.options.settings import api_keys
from manylora.server.service import Service

SERVER_WIDE_SECONDS: Final = 1.0  # how old may be what is not under vLLM's names


class OwnMetrics:
    """What is told at this address: vLLM's names as things stand, ours of the whole server a second old.

    Series by adapter, alias and tenant are not here: they are many, and names of tenants may be secret.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server_wide = b""
        self._until = 0.0

    def exposition(self) -> bytes:
        """The body of the answer."""
        now = time.monotonic()
        if now >= self._until:
            self._server_wide = self._service.metrics.server_wide()
            self._until = now + SERVER_WIDE_SECONDS
        return self._service.vllm.exposition() + self._server_wide


def create_metrics_app(service: Service) -> FastAPI:
    """The application of that address: ``/metrics``, and the server's ``/health`` and ``/ready``."""
    config = service.config
    app = FastAPI(
        dependencies=[Depends(guard_for(config, service.tenants))],
        telemetry={"tracing": False, "logs": False},
        redirect_slashes=False,
        openapi_url=None,
    )
    app.state.service = service
    app.state.error_redactor = error_redactor(api_keys(config))
    for kind in (ServerError, AdapterError, HTTPException, Exception):
        app.add_exception_handler(kind, answer_error)
    told = OwnMetrics(service)
    router = APIRouter()

    @router.get("/metrics")
    @needs(OPEN if config.metrics_open else INFER)
    async def metrics() -> Response:
        return Response(told.exposition(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)
    for path, endpoint in (("/health", health.health), ("/ready", health.ready)):
        app.add_api_route(path, endpoint, methods=["GET"])
    return app
