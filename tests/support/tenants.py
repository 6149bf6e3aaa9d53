"""Tenants of a running server, made over HTTP as an operator does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

ADMIN = "the-admin-key"


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}


def tenant_key(http: httpx.Client, name: str, adapters: Sequence[str] = (), **settings: Any) -> str:
    """A key of a new tenant."""
    body = {"name": name, "adapters": list(adapters), **settings}
    made = http.post("/v1/tenants", json=body, headers=bearer(ADMIN))
    assert made.status_code == 201, made.text
    key: str = new_key(http, name)["key"]
    return key


def new_key(http: httpx.Client, tenant: str, **fields: Any) -> dict[str, Any]:
    """One more key of a tenant."""
    made = http.post(f"/v1/tenants/{tenant}/keys", json=fields, headers=bearer(ADMIN))
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def chat(model: str, **fields: Any) -> Mapping[str, Any]:
    """The body of a short chat."""
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, **fields}
