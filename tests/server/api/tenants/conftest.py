"""One server with an admin's key, and with nobody else's but tenants'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    service = service_of(data, model, adapters, admin_api_key=[ADMIN], access_log=True, training="external")
    with serving(service) as running:
        yield running
        running.wait_until_idle()


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    """A client without a key, on a server without tenants."""
    with server.http() as client:
        yield client
        headers = {"authorization": f"Bearer {ADMIN}"}
        for alias in client.get("/v1/aliases", headers=headers).json()["data"]:
            client.delete(f"/v1/aliases/{alias['id']}", headers=headers)
        for tenant in client.get("/v1/tenants", headers=headers).json()["data"]:
            client.delete(f"/v1/tenants/{tenant['name']}?adapters=true", headers=headers)
