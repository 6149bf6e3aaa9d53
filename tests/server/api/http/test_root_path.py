"""Behind a proxy that takes a prefix off: same routes, same keys, and links that have the prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from manylora.server.options.settings import Settings
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of

KEYS: dict[str, Any] = {"api_key": ["user"], "admin_api_key": ["admin"]}


@pytest.fixture(scope="module", params=["/llm", "/v1", "/health/"])
def prefixed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path
) -> Iterator[Running]:
    """A server behind a prefix, one that is the beginning of its own routes among them."""
    data = tmp_path_factory.mktemp("data")
    with serving(service_of(data, model, adapters, root_path=request.param, **KEYS)) as running:
        yield running


def _get(server: Running, path: str, key: str = "") -> httpx.Response:
    return httpx.get(server.url + path, headers={"authorization": f"Bearer {key}"} if key else {})


@pytest.mark.slow
def test_routes_and_keys(prefixed: Running) -> None:
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert _get(prefixed, path).status_code == 200
    statuses = {
        key: [_get(prefixed, path, key).status_code for path in ("/v1/models", "/v1/adapters", "/v1/none")]
        for key in ("", "user", "admin")
    }
    assert statuses["admin"] == [200, 200, 404]
    assert statuses["user"][:2] == [200, 403]
    assert statuses[""][:2] == [401, 401]


@pytest.mark.slow
def test_links_have_the_prefix(prefixed: Running) -> None:
    root = prefixed.service.config.root_path.rstrip("/")
    answer = httpx.put(
        f"{prefixed.url}/v1/adapters/late",
        json={"source": str(prefixed.service.config.adapter_root[0] / "alpha")},
        headers={"authorization": "Bearer admin"},
    )
    assert answer.status_code == 202
    assert answer.headers["location"] == f"{root}/v1/adapters/late"


@pytest.mark.parametrize("prefix", ["llm", "/a b", "//", "/a//b", "/a\n", "/%2e", "http://x/", "/a?b", "/é"])
def test_prefixes_that_are_none(prefix: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(root_path=prefix)
