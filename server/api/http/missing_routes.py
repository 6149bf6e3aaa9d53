"""What is told of routes of the APIs spoken here that a server of text models doesn't have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette._utils import get_route_path
from starlette.types import Scope

_TEXT: Final = "the models here read and write text"
_RESPONSES: Final = "/v1/responses goes on with conversations, by 'previous_response_id'"
_KEYS: Final = "keys are options of the server"

# Under which paths a route lies, and what there is in its place, or why there is nothing.
MISSING: Final[Mapping[str, str]] = {
    "/v1/assistants": _RESPONSES,
    "/v1/audio": _TEXT,
    "/v1/chat/completions/": "chats are not kept; /v1/responses keeps answers",
    "/v1/chatkit": _RESPONSES,
    "/v1/complete": "/v1/messages is its newer name",
    "/v1/containers": "nothing is run here: tools are the client's",
    "/v1/conversations": _RESPONSES,
    "/v1/edits": "/v1/chat/completions answers instructions",
    "/v1/engines": "/v1/models is its newer name",
    "/v1/evals": "/v1/compare compares models",
    "/v1/fine-tunes": "/v1/fine_tuning/jobs is its newer name",
    "/v1/images": _TEXT,
    "/v1/messages/batches": "/v1/batches answers files of requests",
    "/v1/moderations": "/classify asks an adapter that was trained to classify",
    "/v1/organization": _KEYS,
    "/v1/organizations": _KEYS,
    "/v1/realtime": f"{_TEXT}; answers are streamed",
    "/v1/skills": "nothing is run here: tools are the client's",
    "/v1/threads": _RESPONSES,
    "/v1/vector_stores": "/v1/embeddings makes vectors, which the client keeps",
    "/v1/videos": _TEXT,
}


def why_missing(scope: Scope) -> str | None:
    """Why there is no route at a path; None where no API spoken here has one."""
    path = get_route_path(scope)
    return next((why for prefix, why in MISSING.items() if _lies_under(path, prefix)), None)


def _lies_under(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and (prefix.endswith("/") or path[len(prefix) :][:1] in ("", "/"))
