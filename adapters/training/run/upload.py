"""Sending a finished adapter to a running server."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import httpx

from manylora.adapters.format.files import kept_in
from manylora.adapters.training.errors import PublishError

KEY_VARIABLE = "MANYLORA_ADMIN_API_KEY"  # the server's key for managing adapters, where it asks for one
SECONDS = 300.0  # the server answers when the adapter serves
_TYPE = "application/octet-stream"


def upload(directory: Path, server: str, name: str) -> None:
    """Put the adapter in ``directory`` on ``server`` as ``name``; it serves when this returns.

    Raises:
        PublishError: the server can't be reached or refuses the adapter.
    """
    key = os.environ.get(KEY_VARIABLE)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    url = f"{server.rstrip('/')}/v1/adapters/{quote(name, safe='')}"
    try:
        with httpx.Client(headers=headers, timeout=SECONDS) as client, ExitStack() as stack:
            files = [
                ("files", (name, stack.enter_context((directory / name).open("rb")), _TYPE))
                for name in kept_in(directory)
            ]
            _check(client.put(url, params={"wait": "true"}, files=files), url)
    except httpx.HTTPError as error:
        raise PublishError(f"{url}: {error}; the adapter is in {directory}") from error


def _check(response: httpx.Response, url: str) -> None:
    if response.is_success:
        return
    try:
        said = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = response.text[:200]
    raise PublishError(f"{url}: {response.status_code}: {said}")
