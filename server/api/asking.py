"""Requests that the server makes of its own routes: those of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import FastAPI

from manylora.server.batches.run import Answer, Ask
from manylora.server.options.settings import Settings


def asker(app: FastAPI, config: Settings) -> Ask:
    """What asks a route of ``app`` as a client with a key would, without a connection."""
    # Never an admin's key: a batch may do what whoever asks for answers may.
    keys = [key.get_secret_value() for key in config.api_key]
    headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://manylora", timeout=None, headers=headers)

    async def ask(path: str, body: Mapping[str, Any]) -> Answer:
        answer = await client.post(path, json=body)
        return Answer(answer.status_code, answer.json(), answer.headers.get("x-request-id", ""))

    return ask
