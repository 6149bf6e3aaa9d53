"""From exception to HTTP answer: the one table, and OpenAI's error shape.

Every answer that is not a success has the body ``{"error": {message, type, param, code}}`` with all
four keys. Messages are sentences for the caller; nothing of an unexpected fault's inside is told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from manylora.adapters.errors import (
    AdapterDeleted,
    AdapterError,
    AdapterExists,
    AdapterInUse,
    AdapterNameError,
    AdapterNotFound,
    AdapterTooLarge,
    ArtifactError,
    BaseModelError,
    MergeFailed,
    MixError,
    OutputExists,
    RegistryUnavailable,
    SourceForbidden,
    SourceMissing,
    SourceUnreachable,
    StoreError,
)
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_NAME_SHOWN, MAX_REPORTED_FAULTS
from manylora.server.errors import (
    AnswerUnknown,
    Cancelled,
    CopyFailed,
    EngineDead,
    ExportFailed,
    ModelNotFound,
    QueueFull,
    RequestError,
    ServerError,
)

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"


class BodyTooLarge(ServerError):
    """The request's body exceeds the bound."""


class Unauthorized(ServerError):
    """No API key, or one that is not among the configured."""


class AdminKeyNeeded(ServerError):
    """The key is one of those that may ask for answers, but not manage adapters."""


class Blamed(ServerError):
    """``cause``, with the request's parameter that is to blame for it."""

    def __init__(self, cause: Exception, param: str) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.param = param


class AdapterUnavailable(ServerError):
    """A registered adapter's files are gone or damaged, so that no request can run with it."""


class GenerationFailed(ServerError):
    """A sequence ended by a fault of the server, not by the request."""


@contextmanager
def blame(param: str, kind: type[Exception] | tuple[type[Exception], ...] = AdapterError) -> Iterator[None]:
    """Answers to exceptions of ``kind`` name ``param``."""
    try:
        yield
    except kind as error:
        raise Blamed(error, param) from error


def unavailable(model: str, error: Exception) -> Exception:
    """What is told of ``model``, whose adapters could not be read: the reason, and what to do."""
    if isinstance(error, AdapterNotFound):  # it was deleted meanwhile, which is an answer
        return error
    reason = "its files can't be read" if isinstance(error, OSError) else str(error)
    later = isinstance(error, SourceUnreachable)
    remedy = "try again later" if later else "publish it again or roll it back to another revision"
    logger.error("%s can't be loaded: %s", model, error)
    return AdapterUnavailable(f"'{model}' can't be loaded: {reason}; {remedy}")


@dataclass(frozen=True, slots=True)
class Row:
    """How one kind of exception is answered.

    ``outcome`` is its label in the metric of rejections; None if the request had been admitted or
    nobody was told.
    """

    status: int
    type: str
    code: str | None
    outcome: str | None
    param: str | None = None  # where the exception doesn't name one itself


TABLE: dict[type[Exception], Row] = {
    RequestError: Row(400, INVALID, None, "invalid"),
    MixError: Row(400, INVALID, "invalid_mix", "invalid", "model"),
    AdapterNameError: Row(400, INVALID, "invalid_adapter_name", "invalid", "model"),
    Unauthorized: Row(401, "authentication_error", "invalid_api_key", "unauthorized"),
    AdminKeyNeeded: Row(403, "permission_error", "admin_key_needed", "forbidden"),
    SourceForbidden: Row(403, "permission_error", "source_forbidden", "forbidden", "lora_path"),
    ModelNotFound: Row(404, INVALID, "model_not_found", "not_found", "model"),
    AdapterNotFound: Row(404, INVALID, "model_not_found", "not_found", "model"),
    AnswerUnknown: Row(404, INVALID, "answer_not_found", "not_found", "response_id"),
    AdapterDeleted: Row(409, "conflict_error", "adapter_deleted", "conflict"),
    AdapterExists: Row(409, "conflict_error", "adapter_exists", "conflict", "lora_name"),
    AdapterInUse: Row(409, "conflict_error", "adapter_in_use", "conflict"),
    Cancelled: Row(409, "conflict_error", "cancelled", "conflict"),
    BodyTooLarge: Row(413, INVALID, "body_too_large", "invalid"),
    ArtifactError: Row(422, INVALID, "invalid_adapter", "unprocessable", "lora_path"),
    SourceMissing: Row(422, INVALID, "artifact_missing", "unprocessable", "lora_path"),
    AdapterTooLarge: Row(422, INVALID, "adapter_too_large", "unprocessable", "model"),
    QueueFull: Row(429, "rate_limit_error", "queue_full", "queue_full"),
    ClientDisconnect: Row(499, INVALID, "client_closed", None),
    CopyFailed: Row(500, "server_error", "merge_failed", "internal"),
    GenerationFailed: Row(500, "server_error", "generation_failed", None),
    MergeFailed: Row(500, "server_error", "merge_failed", "internal"),
    ExportFailed: Row(500, "server_error", "export_failed", "internal"),
    BaseModelError: Row(500, "server_error", "base_model_unusable", "internal"),
    OutputExists: Row(409, "conflict_error", "directory_exists", "conflict", "directory"),
    StoreError: Row(507, "server_error", "store_failed", "internal"),
    SourceUnreachable: Row(502, "server_error", "source_unreachable", "unavailable", "source"),
    RegistryUnavailable: Row(503, "server_error", "registry_unavailable", "unavailable"),
    AdapterUnavailable: Row(503, "server_error", "adapter_unavailable", "unavailable", "model"),
    EngineDead: Row(503, "server_error", "engine_dead", "unavailable"),
}

_UNEXPECTED = Row(500, "server_error", "internal_error", "internal")


@dataclass(frozen=True, slots=True)
class ApiError:
    """One answer that is not a success."""

    row: Row
    message: str
    param: str | None
    code: str | None
    headers: dict[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object, in OpenAI's shape."""
        error = {"message": self.message, "type": self.row.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        return Json(self.body, self.row.status, self.headers)


def describe(error: Exception) -> ApiError:
    """Look ``error`` up in the table; whatever is not there is a 500 that tells nothing."""
    if isinstance(error, ValidationError | RequestValidationError):
        return _describe_validation(error)
    if isinstance(error, HTTPException):
        return _describe_http(error)
    if isinstance(error, Blamed):
        return replace(describe(error.cause), param=error.param)
    row = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    if row is None:
        return ApiError(_UNEXPECTED, "The server met an unexpected fault.", None, _UNEXPECTED.code, {})
    param: str | None = getattr(error, "param", None)
    code: str | None = getattr(error, "code", None)
    return ApiError(
        row,
        str(error),
        row.param if param is None else param,
        row.code if code is None else code,
        _headers(error),
    )


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, QueueFull):
        return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, BodyTooLarge):
        return {"connection": "close"}  # the rest of the body is not read
    return {}


def _describe_validation(error: ValidationError | RequestValidationError) -> ApiError:
    """All faults of the body in one message; ``param`` is the path of the first: ``messages[0].role``."""
    faults = [(_path(fault["loc"]), str(fault["msg"]), str(fault["type"])) for fault in error.errors()]
    sentences = [_sentence(*fault) for fault in faults[:MAX_REPORTED_FAULTS]]
    if len(faults) > MAX_REPORTED_FAULTS:
        sentences.append(f"and {len(faults) - MAX_REPORTED_FAULTS} more")
    param, _, kind = faults[0]
    code = "unknown_parameter" if kind == "extra_forbidden" else None
    return ApiError(TABLE[RequestError], "; ".join(sentences), param or None, code, {})


def _sentence(path: str, message: str, kind: str) -> str:
    if kind == "extra_forbidden":
        return f"Unrecognized request argument supplied: {path}"
    text = "must be an object" if kind == "model_type" else message
    if kind in {"too_short", "too_long"}:  # "List should have at least 2 items after validation, not 1"
        text = text.replace("List should have", "must hold").replace(" after validation", "")
    return f"{path}: {text}" if path else text


def _path(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``; ``("query", "limit")`` -> ``limit``."""
    path = ""
    for step in location[1:] if location[:1] in (("query",), ("path",)) else location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            name = step[:MAX_NAME_SHOWN]
            path += f".{name}" if path else name
    return path


def _describe_http(error: HTTPException) -> ApiError:
    """Unknown routes and methods, raised by the router."""
    status = HTTPStatus(error.status_code)
    outcome = "not_found" if status is HTTPStatus.NOT_FOUND else "invalid"
    row = Row(error.status_code, INVALID, status.phrase.lower().replace(" ", "_"), outcome)
    return ApiError(row, str(error.detail), None, row.code, dict(error.headers or {}))


async def handle(request: Request, error: Exception) -> Response:
    """The application's one exception handler."""
    answer = describe(error)
    if isinstance(error, HTTPException) and error.status_code in {404, 405}:
        message = f"There is nothing at {request.method} {request.scope['path'][:200]}"
        answer = replace(answer, message=message)
    if answer.row.outcome is not None:
        request.app.state.service.metrics.rejected(answer.row.outcome)
    response = answer.response()
    if "manylora.request_id" in request.scope:  # an unexpected fault is answered outside the middleware
        response.headers["x-request-id"] = request.scope["manylora.request_id"]
    return response
