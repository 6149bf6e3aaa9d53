"""The HTTP application: all routes, the middleware around them, and the service's life cycle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import SecretStr, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from manylora.adapters.errors import AdapterError
from manylora.server.api.admin import adapters, aliases, compose, export, lora, merge, put_adapter
from manylora.server.api.admin.publications import Publications
from manylora.server.api.compare import route as compare
from manylora.server.api.generate import chat, classify, completions, feedback, models, tokenize
from manylora.server.api.http.error_answers import answer_error
from manylora.server.api.http.middleware import ApiKeyCheck, ApiKeySet, BodyLimit, IgnoredFields, RequestId
from manylora.server.api.http.openapi import Application
from manylora.server.api.http.unpacking import Unpacking
from manylora.server.api.operation import docs, health
from manylora.server.errors import ServerError
from manylora.server.service import Service

OPEN_PATHS = docs.PATHS | {"/health", "/ready", "/openapi.json"}  # need no key

_RESOURCES = (
    chat,
    completions,
    classify,
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
    tokenize,
    health,
    docs,
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


def create_app(service: Service) -> FastAPI:
    """The ASGI application that serves ``service``; starting and stopping it starts and stops the service."""
    app = Application(
        service,
        [resource.router for resource in _RESOURCES],
        title="manylora",
        description="One base model, many LoRA adapters, and weighted mixes of them, in one batch.",
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    app.state.comparison_limit = compare.ComparisonLimit()
    app.state.publications = Publications()
    for kind in _HANDLED:
        app.add_exception_handler(kind, answer_error)
    _wrap(app, service)
    return app


def _wrap(app: FastAPI, service: Service) -> None:
    """Wrap the application in its middleware, innermost first."""
    config, metrics = service.config, service.metrics
    app.add_middleware(IgnoredFields)
    app.add_middleware(BodyLimit, metrics=metrics, upload_limit=config.max_upload_bytes)
    app.add_middleware(Unpacking, limit=config.max_upload_bytes)
    keys, admin_keys = _key_set(config.api_key), _key_set(config.admin_api_key)
    if keys or admin_keys:
        app.add_middleware(
            ApiKeyCheck, metrics=metrics, keys=keys, admin_keys=admin_keys, open_paths=OPEN_PATHS
        )
    app.add_middleware(RequestId)


def _key_set(keys: list[SecretStr]) -> ApiKeySet:
    return ApiKeySet(key.get_secret_value() for key in keys)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    try:
        await service.start()
        yield
    finally:
        await service.stop()
