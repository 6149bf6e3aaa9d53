"""Sending a finished adapter to a running server."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from adapters.training.errors import PublishError

KEY_VARIABLE = "MANYLORA_ADMIN_KEY"  # the server's key for managing adapters, where it asks for one
READY_SECONDS = 120.0
POLL_SECONDS = 0.2
_NOT_SENT = {"README.md"}


def upload(directory: Path, server: str, name: str) -> None:
    """Put the adapter in ``directory`` on ``server`` as ``name`` and wait until it answers.

    Raises:
        PublishError: the server can't be reached, refuses the adapter or never gets ready with it.
    """
    key = os.environ.get(KEY_VARIABLE)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    url = f"{server.rstrip('/')}/v1/adapters/{name}"
    try:
        with httpx.Client(headers=headers, timeout=READY_SECONDS) as client, ExitStack() as stack:
            files = [
                ("files", (path.name, stack.enter_context(path.open("rb")), "application/octet-stream"))
                for path in sorted(directory.iterdir())
                if path.name not in _NOT_SENT
            ]
            _checked(client.put(url, files=files), url)
            _wait(client, url)
    except httpx.HTTPError as error:
        raise PublishError(f"{url}: {error}; the adapter is in {directory}") from error


def _wait(client: httpx.Client, url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        status = _checked(client.get(url), url)
        if status.get("state") == "ready":
            return
        if status.get("state") == "failed":
            raise PublishError(f"{url}: the server refuses the adapter: {status.get('error')}")
        time.sleep(POLL_SECONDS)
    raise PublishError(f"{url}: not ready after {READY_SECONDS:.0f} s")


def _checked(response: httpx.Response, url: str) -> dict[str, Any]:
    """The body of a good answer."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.is_success and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else response.text[:200]
    raise PublishError(f"{url}: {response.status_code}: {said}")
