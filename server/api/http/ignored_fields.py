"""Fields of a request that were taken and did nothing, named in a header of its answer."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "x-manylora-ignored-fields"
MAX_NAMED: Final = 32  # fields; the header ends in "..." where there are more

_KEY = "manylora.ignored_fields"


class IgnoredFields:
    """Middleware that puts the names which :func:`ignored_fields` collects into the answer's header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        names: list[str] = []
        scope[_KEY] = names

        async def send_with_names(message: Message) -> None:
            if names and message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = _header(names)
            await send(message)

        await self.app(scope, receive, send_with_names)


def ignored_fields(request: Request) -> list[str]:
    """The list that takes the paths of fields of ``request`` which do nothing."""
    names: list[str] = request.scope.setdefault(_KEY, [])
    return names


def _header(names: list[str]) -> str:
    """The names without repetition, in order; what a header can't hold is percent-encoded."""
    distinct = list(dict.fromkeys(names))
    shown = [quote(name, safe="[]._-") for name in distinct[:MAX_NAMED]]
    return ", ".join(shown + ["..."] * (len(distinct) > MAX_NAMED))
