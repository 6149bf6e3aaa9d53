"""Tenants of a running server, made over HTTP as an operator does."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

ADMIN = "the-admin-key"
BOTH = ["infer", "manage"]  # what a key may be for, but for everything
Key = dict[str, str]  # the header that carries one


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


def archive(directory: Path) -> bytes:
    """The adapter in a directory, as it is uploaded."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(directory, ".")
    return packed.getvalue()


def publish(http: httpx.Client, key: Key, name: str, directory: Path) -> httpx.Response:
    """The answer to an upload of the adapter in a directory."""
    headers = {**key, "content-type": "application/x-tar"}
    return http.put(f"/v1/adapters/{name}?wait=true", content=archive(directory), headers=headers)


def manager(http: httpx.Client, tenant: str, **settings: Any) -> Key:
    """A key of a new tenant that asks and manages."""
    tenant_key(http, tenant, **settings)
    return bearer(new_key(http, tenant, scopes=BOTH)["key"])


def answer(http: httpx.Client, key: Key, model: str) -> tuple[str, str]:
    """What answers, and what it says."""
    body = chat(model, max_tokens=8, ignore_eos=True, temperature=0)
    told = http.post("/v1/chat/completions", json=body, headers=key)
    assert told.status_code == 200, told.text
    return told.json()["model"], told.json()["choices"][0]["message"]["content"]


def models(http: httpx.Client, key: Key) -> list[str]:
    """The models that are listed."""
    return [model["id"] for model in http.get("/v1/models", headers=key).json()["data"]]
