"""Other spellings of a request that routes need not know: HEAD for GET, and a slash at the end of a path."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Middleware that answers HEAD like GET, without the body. Every GET route may be asked so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class TrailingSlash:
    """Middleware that takes one slash off the end of a path, so that both spellings reach the same route.

    Clients are not redirected: many of them repeat a POST without its body then, or drop their key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, root = scope["path"], scope.get("root_path", "")
            if path.endswith("/") and len(path) > len(root) + 1:
                scope = {**scope, "path": path[:-1]}
        await self.app(scope, receive, send)


def to_root(scope: Scope) -> str:
    """What relative links begin with to lead from a route of one step to the root: the slash counts."""
    return "../" if scope.get("raw_path", b"").endswith(b"/") else ""
