"""Keys as Anthropic's clients send them, and schemas that are looked at: by a server that writes freely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.api.messages.conftest import body_of
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

KEY, ADMIN = "sk-ant-first-key", "sk-ant-admin-key"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that needs keys, and that chooses tokens itself."""
    model = tiny_model(tmp_path_factory.mktemp("model"))
    service = tiny_service(model, tmp_path_factory.mktemp("data"), api_key=[KEY], admin_api_key=[ADMIN])
    with serving(service) as running:
        yield running


def test_keys(locked: Running) -> None:
    """A key opens in either header, whatever is in the other one."""
    with locked.http() as http:

        def status(path: str, **headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return http.post(path, json=body_of(max_tokens=2), headers=named).status_code

        for path in ("/v1/messages", "/v1/chat/completions"):
            assert status(path, x_api_key=KEY) == 200
            assert status(path, authorization=f"Bearer {KEY}") == 200
            assert status(path, x_api_key="wrong", authorization=f"Bearer {KEY}") == 200
            assert status(path, x_api_key=KEY, authorization="Bearer wrong") == 200
            for wrong in ("", "wrong", f"Bearer {KEY}", f"{KEY}x", f"{KEY},{KEY}", KEY.upper()):
                assert status(path, x_api_key=wrong) == 401
        assert status("/v1/adapters/x/compose", x_api_key=KEY) == 403
        assert status("/v1/adapters/x/compose", x_api_key=ADMIN) not in (401, 403)
        refused = http.post("/v1/messages", json=body_of(), headers={"x-api-key": "wrong"})
        assert refused.json()["error"]["type"] == "authentication_error"
        named = http.post("/v1/messages", json=body_of(model=KEY), headers={"x-api-key": KEY})
        assert named.status_code == 404
        assert KEY not in named.text


def test_a_schema_that_cannot_be_kept_is_told_by_its_place(locked: Running) -> None:
    def told(schema: dict[str, Any]) -> httpx.Response:
        config = {"format": {"type": "json_schema", "schema": schema}}
        with locked.http() as http:
            return http.post(
                "/v1/messages",
                json=body_of(max_tokens=9, output_config=config),
                headers={"x-api-key": KEY},
            )

    refused = told({"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}})
    assert refused.status_code == 400
    assert "output_config.format.schema" in refused.json()["error"]["message"]
    assert told({"type": "boolean"}).json()["content"][0]["text"] in ("true", "false")
