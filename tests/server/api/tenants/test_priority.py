"""Priorities of requests, as far as keys allow them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.running_server import Running
from tests.support.tenant_routes import ASKING
from tests.support.tenants import ADMIN, bearer, chat, new_key, tenant_key


@pytest.fixture
def seen(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The priorities with which requests reach the engine."""
    found: list[int | None] = []
    submit = server.service.engine.submit

    def watched(request: Any, *arguments: Any) -> Any:
        found.append(request.priority)
        return submit(request, *arguments)

    monkeypatch.setattr(server.service.engine, "submit", watched)
    return found


def test_a_key_bounds_the_priorities_of_its_requests(http: httpx.Client, seen: list[int | None]) -> None:
    plain = tenant_key(http, "acme", ["alpha"])
    urgent, later = (new_key(http, "acme", priority=n)["key"] for n in (-5, 5))
    for key, asked, expected in (
        (plain, None, 0), (plain, 3, 3), (urgent, None, 0), (urgent, -5, -5), (later, None, 5), (later, 7, 7),
        (ADMIN, None, None), (ADMIN, -100, -100),
    ):  # fmt: skip
        seen.clear()
        fields = {} if asked is None else {"priority": asked}
        for path, body in (
            ("/v1/chat/completions", chat("tiny", **fields)),
            ("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1, **fields}),
        ):
            told = http.post(path, json=body, headers=bearer(key))
            assert told.status_code == 200, told.text
        assert seen == [expected, expected]
    for key, asked in ((plain, -1), (urgent, -6), (later, 4), (later, 0)):
        told = http.post("/v1/chat/completions", json=chat("tiny", priority=asked), headers=bearer(key))
        assert (told.status_code, told.json()["error"]["param"]) == (400, "priority")
    shown = http.get("/v1/tenants/acme/keys", headers=bearer(ADMIN)).json()["data"]
    assert [key["priority"] for key in shown] == [0, -5, 5]


@pytest.mark.parametrize("path", ASKING)
def test_on_every_route(http: httpx.Client, seen: list[int | None], path: str) -> None:
    tenant_key(http, "acme", ["alpha"])
    key = new_key(http, "acme", priority=5)["key"]
    assert http.post(path, json=ASKING[path](2), headers=bearer(key)).status_code == 200
    assert set(seen) == {5}


@pytest.mark.parametrize("priority", ["1", 1.5, 2**31, True])
def test_malformed_priorities_are_refused(http: httpx.Client, priority: object) -> None:
    told = http.post("/v1/chat/completions", json=chat("tiny", priority=priority))
    assert (told.status_code, told.json()["error"]["param"]) == (400, "priority")
    tenant_key(http, "acme")
    made = http.post("/v1/tenants/acme/keys", json={"priority": priority}, headers=bearer(ADMIN))
    assert (made.status_code, made.json()["error"]["param"]) == (400, "priority")
