"""The audit log: who did what, from where, and what changed; never a key or a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.adapters.errors import RegistryUnavailable
from manylora.adapters.registry.registry import Registry
from tests.support.running_server import Running
from tests.support.tenants import ADMIN, bearer, chat, manager, new_key, publish, tenant_key


def audit(http: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    told = http.get("/v1/audit", params=query, headers=bearer(ADMIN))
    assert told.status_code == 200, told.text
    found: list[dict[str, Any]] = told.json()["data"]
    return found


def test_what_operators_do_is_told_with_before_and_after(http: httpx.Client) -> None:
    tenant_key(http, "audited")
    headers = {**bearer(ADMIN), "x-request-id": "asked-by-me"}
    http.patch("/v1/tenants/audited", json={"weight": 2}, headers=headers)
    last = audit(http, target="audited", limit=1)[0]
    assert (last["who"], last["tenant"], last["status"]) == ("admin-api-key", "", 200)
    assert (last["action"], last["address"], last["request"]) == (
        "PATCH /v1/tenants/{tenant}",
        "127.0.0.1",
        "asked-by-me",
    )
    assert (last["before"]["weight"], last["after"]["weight"]) == (1.0, 2.0)
    made = audit(http, action="POST /v1/tenants", target="audited")[0]
    assert made["before"] is None
    assert made["after"]["name"] == "audited"
    http.delete("/v1/tenants/audited", headers=bearer(ADMIN))
    gone = audit(http, target="audited", limit=1)[0]
    assert (gone["action"], gone["before"]["weight"]) == ("DELETE /v1/tenants/{tenant}", 2.0)
    times = [each["time"] for each in audit(http)]
    assert times == sorted(times, reverse=True)
    assert audit(http, **{"from": last["time"]})[-1]["id"] == last["id"]
    assert all(each["time"] < last["time"] for each in audit(http, to=last["time"]))


def test_keys_are_known_by_their_ids_and_nothing_else(server: Running, http: httpx.Client) -> None:
    tenant_key(http, "audited")
    made = new_key(http, "audited", scopes=["admin", "infer"])
    key = bearer(made["key"])
    http.put("/v1/aliases/mine", json={"target": "alpha"}, headers=key)
    http.put(f"/v1/aliases/{made['key']}", json={"target": "alpha"}, headers=key)
    rotated = http.post(f"/v1/tenants/audited/keys/{made['id']}/rotate", headers=key).json()
    told = audit(http, who=made["id"])
    assert [each["action"].split()[0] for each in told] == ["POST", "PUT", "PUT"]
    assert {each["tenant"] for each in told} == {"audited"}
    assert told[2]["after"] == {"split": [["alpha", 1.0]]}
    assert told[0]["after"]["id"] == rotated["id"]
    with Registry(server.service.config.registry) as registry:
        everything = str(registry.audit.read(where={}, since=0, until=2**40, limit=1000))
    for secret in (made["key"], rotated["key"], ADMIN):
        assert secret not in everything
        assert secret not in http.get("/v1/audit", headers=bearer(ADMIN)).text
    http.delete(f"/v1/aliases/{made['key']}", headers=bearer(ADMIN))


def test_what_tenants_manage_is_told_too_and_what_is_asked_is_not(http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "audited")
    assert publish(http, key, "support", adapters / "alpha").status_code == 201
    http.patch("/v1/adapters/support", json={"shared_with": ["*"]}, headers=key)
    http.post("/v1/chat/completions", json=chat("support"), headers=key)
    http.get("/v1/adapters/support", headers=key)
    told = audit(http, target="audited/support")
    assert [each["action"].split()[0] for each in told] == ["PATCH", "PUT"]
    assert (told[0]["before"]["shared_with"], told[0]["after"]["shared_with"]) == ([], ["*"])
    assert (told[1]["before"], told[1]["after"]["state"]) == (None, "ready")
    assert http.delete("/v1/tenants/audited", headers=key).status_code == 403
    assert audit(http, target="audited", limit=1)[0]["status"] == 403  # it was kept from it
    assert http.get("/v1/audit", headers=key).status_code == 403
    assert http.delete("/v1/tenants/audited").status_code == 401
    assert audit(http, target="audited", limit=1)[0]["status"] == 403  # nobody's attempts are not told


def test_records_wait_for_a_database_that_is_away(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = server.service.adapters.registry.audit
    add, away = registry.add, True

    def sometimes(records: Any) -> None:
        if away:
            raise RegistryUnavailable("away")
        add(records)

    monkeypatch.setattr(registry, "add", sometimes)
    tenant_key(http, "audited")
    assert http.get("/v1/audit", headers=bearer(ADMIN)).status_code == 503
    away = False
    assert audit(http, target="audited", action="POST /v1/tenants")[0]["status"] == 201


@pytest.mark.parametrize("query", ["from=-1", "to=x", "limit=0", "limit=10001", "whom=a", "who=%00"])
def test_malformed_queries_are_refused(http: httpx.Client, query: str) -> None:
    told = http.get(f"/v1/audit?{query}", headers=bearer(ADMIN))
    assert told.status_code == 400
    assert told.json()["error"]["param"] == query.split("=", maxsplit=1)[0]


def test_old_records_go(server: Running, http: httpx.Client) -> None:
    tenant_key(http, "audited")
    last = audit(http, limit=1)[0]
    registry = server.service.adapters.registry.audit
    assert registry.remove_before(last["time"]) > 0
    assert [each["id"] for each in audit(http)] == [last["id"]]
    assert registry.remove_before(last["time"] + 1) == 1
