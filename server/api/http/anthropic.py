"""What every answer under the routes of Anthropic's API looks like, errors included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette._utils import get_route_path
from starlette.types import Scope

REQUEST_ID: Final = "manylora.request_id"  # where a request's scope has its id
MESSAGE_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

_ROUTES: Final = "/v1/messages"
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def asks_anthropic(scope: Scope) -> bool:
    """Whether a request is one of Anthropic's API, also where no route answers it."""
    path = get_route_path(scope)
    return path == _ROUTES or path.startswith(f"{_ROUTES}/")


def anthropic_error(status: int, error: Mapping[str, Any], scope: Scope) -> dict[str, Any]:
    """The JSON object of an error in Anthropic's shape; ``error`` is what OpenAI's has under that name.

    Its ``param`` and ``code`` stay, for those who look for them.
    """
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {**error, "type": kind}, "request_id": scope.get(REQUEST_ID)}


def id_headers(scope: Scope) -> dict[str, str]:
    """The headers that carry the id of a request which has one already."""
    if REQUEST_ID not in scope:
        return {}
    names = ("x-request-id", "request-id") if asks_anthropic(scope) else ("x-request-id",)
    return dict.fromkeys(names, str(scope[REQUEST_ID]))
