"""What becomes of a request whose key is revoked, if that is to end what runs with it."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora.server.api.access.scopes import OPEN
from manylora.server.api.http.error_answers import error_answer
from manylora.server.errors import Unauthorized
from manylora.server.tenants.running import ENDED

logger = logging.getLogger(__name__)


class EndWithKey:
    """Middleware that answers 401 in place of a request that is ended, or breaks off its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ended: list[str] = []
        scope[ENDED] = ended
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not ended or task is None:
                raise
            task.uncancel()
            logger.info("a request was ended: %s", ended[0])
            if not started:
                answer = error_answer(Unauthorized("This key has been revoked"), OPEN)
                await answer.response(scope)(scope, receive, send)
