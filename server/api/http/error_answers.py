"""How exceptions are answered over HTTP: one table of statuses, and OpenAI's error shape.

Every answer that is not a success has the body ``{"error": {message, type, param, code}}`` with all
four keys; under the routes of Anthropic's API it has that API's. Messages are sentences for the caller. They
tell nothing of an unexpected fault's inside, and only admins where things are on the server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from manylora.adapters.disk import is_full
from manylora.adapters.errors import (
    AdapterDeleted,
    AdapterExists,
    AdapterInUse,
    AdapterNameError,
    AdapterNotFound,
    AdapterTooLarge,
    ArtifactError,
    BaseModelError,
    DiskFull,
    MergeFailed,
    MixError,
    OutputExists,
    OverQuota,
    RegistryUnavailable,
    SourceForbidden,
    SourceMissing,
    SourceUnreachable,
    StorageUnreachable,
    StoreError,
    TenantExists,
    TenantNotFound,
)
from manylora.server.api.access.scopes import ADMIN, KeyScope, caller_scope
from manylora.server.api.http.anthropic import anthropic_error, asks_anthropic, id_headers
from manylora.server.api.http.body import path_of
from manylora.server.api.http.error_context import Blamed
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_REPORTED_FAULTS
from manylora.server.api.http.missing_routes import why_missing
from manylora.server.errors import (
    AdapterUnavailable,
    AdminKeyNeeded,
    AnswerUnknown,
    BodyTooLarge,
    Cancelled,
    CopyFailed,
    EngineDead,
    ExportFailed,
    GenerationFailed,
    ModelNotFound,
    ObjectInUse,
    ObjectNotFound,
    QueueFull,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerStopping,
    TooManyConnections,
    Unauthorized,
    UnknownEncoding,
)

INVALID_REQUEST = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one kind of exception is answered.

    ``rejection`` is its label in the metric of rejected requests; None if the request had been admitted or
    nobody was told.
    """

    status: int
    type: str
    code: str | None
    rejection: str | None
    param: str | None = None  # where the exception doesn't name one itself


KINDS: dict[type[Exception], ErrorKind] = {
    RequestError: ErrorKind(400, INVALID_REQUEST, None, "invalid"),
    MixError: ErrorKind(400, INVALID_REQUEST, "invalid_mix", "invalid", "model"),
    AdapterNameError: ErrorKind(400, INVALID_REQUEST, "invalid_adapter_name", "invalid", "model"),
    Unauthorized: ErrorKind(401, "authentication_error", "invalid_api_key", "unauthorized"),
    AdminKeyNeeded: ErrorKind(403, "permission_error", "admin_key_needed", "forbidden"),
    SourceForbidden: ErrorKind(403, "permission_error", "source_forbidden", "forbidden", "lora_path"),
    OverQuota: ErrorKind(403, "permission_error", "quota_exceeded", "forbidden"),
    ModelNotFound: ErrorKind(404, INVALID_REQUEST, "model_not_found", "not_found", "model"),
    AdapterNotFound: ErrorKind(404, INVALID_REQUEST, "model_not_found", "not_found", "model"),
    AnswerUnknown: ErrorKind(404, INVALID_REQUEST, "answer_not_found", "not_found", "response_id"),
    TenantNotFound: ErrorKind(404, INVALID_REQUEST, "tenant_not_found", "not_found", "name"),
    ObjectNotFound: ErrorKind(404, INVALID_REQUEST, "not_found", "not_found"),
    RequestTimeout: ErrorKind(408, INVALID_REQUEST, "request_timeout", None),
    AdapterDeleted: ErrorKind(409, "conflict_error", "adapter_deleted", "conflict"),
    AdapterExists: ErrorKind(409, "conflict_error", "adapter_exists", "conflict", "lora_name"),
    TenantExists: ErrorKind(409, "conflict_error", "tenant_exists", "conflict", "name"),
    AdapterInUse: ErrorKind(409, "conflict_error", "adapter_in_use", "conflict"),
    ObjectInUse: ErrorKind(409, "conflict_error", "in_use", "conflict"),
    Cancelled: ErrorKind(409, "conflict_error", "cancelled", "conflict"),
    BodyTooLarge: ErrorKind(413, INVALID_REQUEST, "body_too_large", "invalid"),
    UnknownEncoding: ErrorKind(415, INVALID_REQUEST, "unknown_encoding", "invalid"),
    ArtifactError: ErrorKind(422, INVALID_REQUEST, "invalid_adapter", "unprocessable", "lora_path"),
    SourceMissing: ErrorKind(422, INVALID_REQUEST, "artifact_missing", "unprocessable", "lora_path"),
    AdapterTooLarge: ErrorKind(422, INVALID_REQUEST, "adapter_too_large", "unprocessable", "model"),
    RateLimited: ErrorKind(429, "rate_limit_error", "rate_limit_exceeded", "rate_limited"),
    QueueFull: ErrorKind(429, "rate_limit_error", "queue_full", "queue_full"),
    ClientDisconnect: ErrorKind(499, INVALID_REQUEST, "client_closed", None),
    CopyFailed: ErrorKind(500, "server_error", "merge_failed", "internal"),
    GenerationFailed: ErrorKind(500, "server_error", "generation_failed", None),
    MergeFailed: ErrorKind(500, "server_error", "merge_failed", "internal"),
    ExportFailed: ErrorKind(500, "server_error", "export_failed", "internal"),
    BaseModelError: ErrorKind(500, "server_error", "base_model_unusable", "internal"),
    OutputExists: ErrorKind(409, "conflict_error", "directory_exists", "conflict", "directory"),
    StoreError: ErrorKind(507, "server_error", "store_failed", "internal"),
    DiskFull: ErrorKind(507, "server_error", "disk_full", "internal"),
    SourceUnreachable: ErrorKind(502, "server_error", "source_unreachable", "unavailable", "source"),
    StorageUnreachable: ErrorKind(503, "server_error", "storage_unavailable", "unavailable"),
    RegistryUnavailable: ErrorKind(503, "server_error", "registry_unavailable", "unavailable"),
    AdapterUnavailable: ErrorKind(503, "server_error", "adapter_unavailable", "unavailable", "model"),
    TooManyConnections: ErrorKind(503, "server_error", "too_many_connections", None),
    EngineDead: ErrorKind(503, "server_error", "engine_dead", "unavailable"),
    ServerStopping: ErrorKind(503, "server_error", "server_stopping", None),
}

# What callers below the admin scope are told of an exception whose own text may name files, directories or
# hosts of the server. The other kinds speak of the request alone.
PUBLIC_TEXTS: dict[type[Exception], str] = {
    ArtifactError: "The adapter's files can't be served by this server",
    SourceForbidden: "The server may not read that source",
    SourceMissing: "The adapter's files are not where they should be",
    SourceUnreachable: "The adapter's files can't be read for now; try again later",
    BaseModelError: "The base model can't be used",
    CopyFailed: "The merged copy could not be made",
    MergeFailed: "The merged model does not answer like the base with the adapters",
    ExportFailed: "The model could not be exported",
    OutputExists: "There is something already where the result was to be written",
    StoreError: "The server's store of adapters can't be used for now",
    StorageUnreachable: "The storage of files can't be used for now",
    RegistryUnavailable: "The server's registry of adapters can't be asked for now",
}

_UNEXPECTED = ErrorKind(500, "server_error", "internal_error", "internal")


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """One answer that is not a success."""

    kind: ErrorKind
    message: str
    param: str | None
    code: str | None
    headers: dict[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object, in OpenAI's shape."""
        error = {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.code}
        return {"error": error}

    def told(self, scope: Scope | None) -> dict[str, Any]:
        """The JSON object in the shape of the API whose route a request asks; None: it asks none yet."""
        if scope is None or not asks_anthropic(scope):
            return self.body
        return anthropic_error(self.kind.status, self.body["error"], scope)

    def response(self, scope: Scope | None) -> Response:
        """The HTTP answer to the request of ``scope``, for a route or a middleware to send."""
        return Json(self.told(scope), self.kind.status, self.headers)


def error_answer(error: Exception, caller: KeyScope) -> ErrorAnswer:
    """The answer for an exception, from the table; one that is not there is a 500 that tells nothing.

    ``caller`` decides whether the message may name what lies on the server.
    """
    if isinstance(error, ValidationError | RequestValidationError):
        return _describe_validation(error)
    if isinstance(error, HTTPException):
        return _describe_http(error)
    if isinstance(error, Blamed):
        return replace(error_answer(error.cause, caller), param=error.param)
    if is_full(error):
        return error_answer(DiskFull("There is no space on the server's disk"), caller)
    kind = next((KINDS[each] for each in type(error).__mro__ if each in KINDS), None)
    if kind is None:
        return ErrorAnswer(_UNEXPECTED, "The server met an unexpected fault.", None, _UNEXPECTED.code, {})
    param: str | None = getattr(error, "param", None)
    code: str | None = getattr(error, "code", None)
    return ErrorAnswer(
        kind,
        str(error) if caller is ADMIN else _public_text(error),
        kind.param if param is None else param,
        kind.code if code is None else code,
        _headers(error),
    )


def _public_text(error: Exception) -> str:
    """The message for callers who must not learn where things are on the server."""
    public: str | None = getattr(error, "public", None)
    if public is not None:
        return public
    texts = (PUBLIC_TEXTS[each] for each in type(error).__mro__ if each in PUBLIC_TEXTS)
    return next(texts, None) or str(error)


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, QueueFull):
        return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, ServerStopping | TooManyConnections):
        return {"retry-after": "1"}
    if isinstance(error, UnknownEncoding):
        return {"accept-encoding": error.accepted, "connection": "close"}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, BodyTooLarge):
        return {"connection": "close"}  # the rest of the body is not read
    return {}


def _describe_validation(error: ValidationError | RequestValidationError) -> ErrorAnswer:
    """All faults of the body in one message; ``param`` is the path of the first: ``messages[0].role``."""
    faults = [(_path(fault["loc"]), str(fault["msg"]), str(fault["type"])) for fault in error.errors()]
    sentences = [_sentence(*fault) for fault in faults[:MAX_REPORTED_FAULTS]]
    if len(faults) > MAX_REPORTED_FAULTS:
        sentences.append(f"and {len(faults) - MAX_REPORTED_FAULTS} more")
    param, _, kind = faults[0]
    code = "unknown_parameter" if kind == "extra_forbidden" else None
    return ErrorAnswer(KINDS[RequestError], "; ".join(sentences), param or None, code, {})


def _sentence(path: str, message: str, kind: str) -> str:
    if kind == "extra_forbidden":
        return f"Unrecognized request argument supplied: {path}"
    text = "must be an object" if kind == "model_type" else message
    if kind in {"too_short", "too_long"}:  # "List should have at least 2 items after validation, not 1"
        text = text.replace("List should have", "must hold").replace(" after validation", "")
    return f"{path}: {text}" if path else text


def _path(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``; ``("query", "limit")`` -> ``limit``."""
    from_url = len(location) > 1 and location[0] in ("query", "path")  # alone it is a field of a body
    return path_of(location[1:] if from_url else location)


def _describe_http(error: HTTPException) -> ErrorAnswer:
    """Unknown routes and methods, raised by the router."""
    status = HTTPStatus(error.status_code)
    rejection = "not_found" if status is HTTPStatus.NOT_FOUND else "invalid"
    kind = ErrorKind(error.status_code, INVALID_REQUEST, status.phrase.lower().replace(" ", "_"), rejection)
    return ErrorAnswer(kind, str(error.detail), None, kind.code, dict(error.headers or {}))


def _without_route(answer: ErrorAnswer, request: Request) -> ErrorAnswer:
    """The answer where there is no route, or none for the method; it says so of those that others have."""
    asked = f"{request.method} {request.scope['path'][:200]}"
    why = why_missing(request.scope) if answer.kind.status == 404 else None
    if why is None:
        return replace(answer, message=f"There is nothing at {asked}")
    return replace(
        answer, message=f"{asked} is not supported by this server: {why}", code="unsupported_endpoint"
    )


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer whatever exception a route raises: the application's one exception handler."""
    answer = error_answer(error, caller_scope(request.scope))
    if isinstance(error, HTTPException) and error.status_code in {404, 405}:
        answer = _without_route(answer, request)
    redact = request.app.state.error_redactor.redact  # a client may have put its key where a name belongs
    param = None if answer.param is None else redact(answer.param)
    answer = replace(answer, message=redact(answer.message), param=param)
    if answer.kind.rejection is not None:
        request.app.state.service.metrics.requests.rejected(answer.kind.rejection)
    response = answer.response(request.scope)
    response.headers.update(id_headers(request.scope))  # unexpected faults are answered outside middleware
    return response
