"""The HTTP application: all routes, the middleware around them, and the service's life cycle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from manylora.adapters.errors import AdapterError
from manylora.server.api.access.access_log import AccessLog
from manylora.server.api.access.guard import guard_for
from manylora.server.api.access.redaction import Redactor, error_redactor
from manylora.server.api.admin import adapters, aliases, compose, export, lora, loras, merge, put_adapter
from manylora.server.api.admin.publications import Publications
from manylora.server.api.admin.quota import Quotas
from manylora.server.api.asking import asker
from manylora.server.api.compare import route as compare
from manylora.server.api.console import pages as console
from manylora.server.api.embed import embeddings, rerank, score
from manylora.server.api.files import batches as batch_routes
from manylora.server.api.files import files, uploads
from manylora.server.api.fine_tuning import events as job_events
from manylora.server.api.fine_tuning import graders, jobs, permissions
from manylora.server.api.fine_tuning import models as tuned_models
from manylora.server.api.generate import chat, classify, completions, feedback, models, tokenize
from manylora.server.api.http.auditing import Auditing
from manylora.server.api.http.ended import EndWithKey
from manylora.server.api.http.error_answers import answer_error
from manylora.server.api.http.middleware import (
    BodyLimit,
    BodySize,
    HeadAsGet,
    IgnoredFields,
    RequestId,
    TrailingSlash,
    Unpacking,
)
from manylora.server.api.http.openapi import Application
from manylora.server.api.http.tracing import Tracing
from manylora.server.api.messages import route as messages
from manylora.server.api.operation import access, docs, health, root
from manylora.server.api.responses import route as responses
from manylora.server.api.tenants import audit, tenants, usage
from manylora.server.api.tenants.apply import apply_file
from manylora.server.errors import ServerError
from manylora.server.options.settings import Settings, api_keys
from manylora.server.service import Service
from manylora.server.tenants.audit import AuditTrail
from manylora.server.tracing.current import RequestTracer

_RESOURCES = (
    chat,
    completions,
    responses,
    messages,
    classify,
    embeddings,
    score,
    rerank,
    files,
    uploads,
    batch_routes,
    jobs,
    job_events,
    tuned_models,
    graders,
    permissions,
    compare,
    feedback,
    models,
    adapters,
    put_adapter,
    aliases,
    merge,
    export,
    compose,
    lora,
    loras,
    tokenize,
    tenants,
    usage,
    audit,
    access,
    health,
    docs,
    root,
)
_HANDLED = (
    ServerError,
    AdapterError,
    ValidationError,
    RequestValidationError,
    HTTPException,
    ClientDisconnect,
    Exception,
)


def create_app(service: Service, *, batches: bool = True) -> FastAPI:
    """The ASGI application that serves ``service``; starting and stopping it starts and stops the service.

    With ``batches`` it also works on the batches of requests in the service's data directory.
    """
    config = service.config
    guard = guard_for(config, service.tenants)
    app = Application(
        service,
        [resource.router for resource in (*_RESOURCES, *([console] if config.console else []))],
        title="manylora",
        description="One base model, many LoRA adapters, and weighted mixes of them, in one batch.",
        lifespan=_lifespan,
        dependencies=[Depends(guard), Depends(BodySize(config.max_upload_bytes))],
        telemetry={"tracing": False, "logs": False},  # spans would carry queries, and keys in them
        redirect_slashes=False,
        openapi_url=None,  # ``docs`` has a route for it, which declares its scope like all others
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    app.state.error_redactor = error_redactor(api_keys(config))
    app.state.comparison_limit = compare.ComparisonLimit()
    app.state.publications = Publications()
    app.state.quotas = Quotas()
    app.state.works_on_batches = batches
    for kind in _HANDLED:
        app.add_exception_handler(kind, answer_error)
    _wrap(app, config, service.tenants.audit, service.tracer)
    return app


def _wrap(app: FastAPI, config: Settings, trail: AuditTrail, tracer: RequestTracer | None) -> None:
    """Wrap the application in its middleware, innermost first."""
    app.add_middleware(IgnoredFields)
    app.add_middleware(BodyLimit)
    app.add_middleware(Unpacking, limit=config.max_upload_bytes)
    app.add_middleware(TrailingSlash)
    app.add_middleware(HeadAsGet)
    if config.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allow_origin,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "x-manylora-model", "retry-after", "location"],
        )
    app.add_middleware(EndWithKey)
    app.add_middleware(Auditing, trail=trail, redactor=Redactor(api_keys(config)))
    if tracer is not None:
        redactor, probes = Redactor(api_keys(config)), {"/health", "/ready", "/metrics"}
        app.add_middleware(Tracing, tracer=tracer, redactor=redactor, untraced=probes)
    app.add_middleware(RequestId)
    if config.access_log:
        app.add_middleware(AccessLog, redactor=Redactor(api_keys(config)))


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    try:
        await service.start()
        if service.config.tenants is not None:
            await apply_file(service, service.config.tenants)
        if app.state.works_on_batches:
            service.batches.start(partial(asker, app))
            service.tuning.start(partial(asker, app))
        yield
    finally:
        await service.stop()
