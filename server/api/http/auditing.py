"""Tells the audit log of every request that has changed something, or was kept from it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.access.audited import AUDITED, Audited
from manylora.server.api.access.redaction import Redactor
from manylora.server.api.http.anthropic import REQUEST_ID
from manylora.server.tenants.audit import AuditTrail


class Auditing:
    """Middleware; stands within what gives requests their ids."""

    def __init__(self, app: ASGIApp, trail: AuditTrail, redactor: Redactor) -> None:
        self.app = app
        self._trail = trail
        self._redactor = redactor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = Audited()
        scope[AUDITED] = told
        status = 499  # the client has left

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        finally:
            if told.action:
                self._trail.add(told.record(scope, status, scope.get(REQUEST_ID, ""), self._redactor))
