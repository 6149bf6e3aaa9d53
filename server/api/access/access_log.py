"""One log line a request: who, what and the status. Never the query, where some clients put their key."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.access.json_log import FIELDS
from manylora.server.api.access.redaction import Redactor

ACCESS_LOGGER: Final = "manylora.access"

logger = logging.getLogger(ACCESS_LOGGER)


class AccessLog:
    """Middleware that logs each request when its answer begins."""

    def __init__(self, app: ASGIApp, redactor: Redactor) -> None:
        self.app = app
        self.redactor = redactor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = False

        async def send_logged(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._log(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_logged)
        except Exception:  # answered outside of the middleware
            if not answered:
                self._log(scope, 500)
            raise

    def _log(self, scope: Scope, status: int) -> None:
        host, port = scope.get("client") or ("-", 0)
        method, version = scope["method"], scope["http_version"]
        path = quote(self.redactor.redact(scope["path"]), safe="/:@!$&'()*+,;=[]")
        fields = {"client": host, "method": method, "path": scope["path"], "status": status}
        text = '%s:%d "%s %s HTTP/%s" %d'
        logger.info(text, host, port, method, path, version, status, extra={FIELDS: fields})
