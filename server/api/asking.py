"""Requests that the server makes of its own routes: of batches, and of programs that it is a part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from manylora.server.api.access.scopes import INFER, ON_BEHALF, OnBehalf
from manylora.server.batches.run import Answer, Ask


class AskedFor:
    """Middleware around an application for requests without a key: it says for whom they are made."""

    def __init__(self, app: ASGIApp, behalf: OnBehalf) -> None:
        self._app, self._behalf = app, behalf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, ON_BEHALF: self._behalf}, receive, send)


def asker(app: FastAPI, tenant: str | None = None) -> Ask:
    """What asks a route of ``app`` without a connection, for the tenant of that id or for who has none.

    It may do what their keys may that ask for answers, never what an admin's may.
    """
    application = AskedFor(app, OnBehalf(INFER, tenant))
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://manylora", timeout=None)

    async def ask(path: str, body: Mapping[str, Any]) -> Answer:
        answer = await client.post(path, json=body)
        return Answer(answer.status_code, answer.json(), answer.headers.get("x-request-id", ""))

    return ask
