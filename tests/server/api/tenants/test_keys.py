"""Tenants' keys: what opens, for how long, and what is told of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tenants.records import TenantSettings
from manylora.server.api.access.scopes import TENANT
from manylora.server.api.app import create_app
from manylora.server.api.asking import asker
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.spelled_targets import Asker, Spelling, requests_of
from tests.support.tenants import ADMIN, bearer, chat, new_key, tenant_key
from tests.support.waiting import wait_until


def status(http: httpx.Client, key: str | None, path: str = "/v1/models") -> int:
    return http.get(path, headers={} if key is None else bearer(key)).status_code


def test_without_tenants_nothing_changes(http: httpx.Client) -> None:
    assert status(http, None) == status(http, "any") == 200
    assert status(http, None, "/metrics") == 200
    assert status(http, None, "/v1/tenants") == 401


def test_with_a_tenant_nobody_is_let_in_without_a_key(http: httpx.Client) -> None:
    key = tenant_key(http, "acme", ["alpha"])
    assert (
        status(http, None) == status(http, "any") == status(http, key[:-1]) == status(http, key + "x") == 401
    )
    assert status(http, key) == status(http, ADMIN) == 200
    assert status(http, None, "/health") == 200
    assert http.post("/v1/chat/completions", json=chat("alpha"), headers=bearer(key)).status_code == 200


def test_a_tenants_key_opens_what_keeps_tenants_apart_and_nothing_else(
    server: Running, http: httpx.Client
) -> None:
    key = tenant_key(http, "acme", ["alpha"])
    asker = Asker(server.url)
    opened = set()
    for method, path, needed in requests_of(create_app(server.service)):
        told = asker.ask(Spelling(method, path), key)
        assert (told.status == 403) == (needed > TENANT), (method, path, told)
        assert told.status != 401
        if needed is TENANT:
            opened.add(path)
    asker.close()
    assert opened == {
        "/classify",
        "/detokenize",
        "/rerank",
        "/score",
        "/tokenize",
        "/tokenizer_info",
        "/v1/batches",
        "/v1/batches/nothing",
        "/v1/batches/nothing/cancel",
        "/v1/chat/completions",
        "/v1/compare",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/feedback",
        "/v1/files",
        "/v1/files/nothing",
        "/v1/files/nothing/content",
        "/v1/fine_tuning/jobs",
        "/v1/fine_tuning/jobs/nothing",
        "/v1/fine_tuning/jobs/nothing/checkpoints",
        "/v1/fine_tuning/jobs/nothing/events",
        "/v1/fine_tuning/alpha/graders/run",
        "/v1/fine_tuning/alpha/graders/validate",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/nothing",
        "/v1/rerank",
        "/v1/responses",
        "/v1/responses/compact",
        "/v1/responses/input_tokens",
        "/v1/responses/nothing",
        "/v1/responses/nothing/cancel",
        "/v1/responses/nothing/input_items",
        "/v1/score",
        "/v1/uploads",
        "/v1/uploads/nothing/cancel",
        "/v1/uploads/nothing/complete",
        "/v1/uploads/nothing/parts",
        "/v2/rerank",
        "/version",
    }


def test_a_key_ends_when_it_is_revoked_or_its_time_is_over(http: httpx.Client) -> None:
    first = tenant_key(http, "acme")
    short, second = new_key(http, "acme", expires_in=1), new_key(http, "acme")
    listed = http.get("/v1/tenants/acme/keys", headers=bearer(ADMIN))
    assert [key["prefix"] for key in listed.json()["data"]][1:] == [short["prefix"], second["prefix"]]
    assert not any(key in listed.text for key in (first, short["key"], second["key"]))
    gone = http.delete(f"/v1/tenants/acme/keys/{second['id']}", headers=bearer(ADMIN))
    assert gone.status_code == 200
    assert status(http, second["key"]) == 401
    assert status(http, first) == 200
    wait_until(lambda: status(http, short["key"]) == 401)
    assert time.time() > short["expires"]
    assert status(http, first) == 200
    http.delete("/v1/tenants/acme", headers=bearer(ADMIN))
    tenant_key(http, "globex")
    assert status(http, first) == 401


def test_rotated_keys_overlap_as_long_as_asked(http: httpx.Client) -> None:
    tenant_key(http, "acme")
    old = new_key(http, "acme")
    rotate = f"/v1/tenants/acme/keys/{old['id']}/rotate"
    new = http.post(rotate, json={"overlap": 60}, headers=bearer(ADMIN)).json()
    assert status(http, old["key"]) == status(http, new["key"]) == 200
    newest = http.post(rotate, headers=bearer(ADMIN)).json()
    assert status(http, old["key"]) == 401
    assert status(http, newest["key"]) == status(http, new["key"]) == 200


def test_other_servers_of_the_registry_hear_of_it(server: Running, http: httpx.Client) -> None:
    with Registry(server.service.config.registry) as other:
        other.tenants.add("acme", TenantSettings())
        record, key = other.tenants.add_key("acme")
        wait_until(lambda: status(http, None) == 401)
        assert status(http, key) == 200
        other.tenants.remove_key("acme", record.id)
        wait_until(lambda: status(http, key) == 401)
        other.tenants.remove("acme")
        wait_until(lambda: status(http, None) == 200)


@pytest.mark.parametrize(
    "value", ["{}", "bearer {}", "Bearer  {}", "Basic {}", "Bearer {} x", "Bearer {}\xe9"]
)
def test_only_a_bearer_is_a_key(http: httpx.Client, value: str) -> None:
    key = tenant_key(http, "acme")
    told = http.get("/v1/models", headers={b"authorization": value.format(key).encode("latin-1")})
    assert told.status_code == (200 if value.strip().lower() in {"bearer {}", "bearer  {}"} else 401)


def test_keys_come_as_anthropics_clients_send_them_too(http: httpx.Client) -> None:
    acme, globex = (
        tenant_key(http, name, [adapter]) for name, adapter in (("acme", "alpha"), ("globex", "beta"))
    )
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    for headers, sees, not_seen in (
        ({"x-api-key": acme}, "alpha", "beta"),
        ({"x-api-key": globex, "authorization": "Bearer wrong"}, "beta", "alpha"),
        ({"x-api-key": globex, **bearer(acme)}, "alpha", "beta"),  # the first that opens
    ):
        assert http.post("/v1/messages", json={"model": sees, **body}, headers=headers).status_code == 200
        assert http.post("/v1/messages", json={"model": not_seen, **body}, headers=headers).status_code == 404
    assert http.post("/v1/messages", json={"model": "tiny", **body}).status_code == 401


def test_keys_are_in_no_log_and_no_answer(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    key = tenant_key(http, "acme")
    with caplog.at_level(logging.INFO):
        answers = [
            http.get(f"/v1/{key}", headers=bearer(key)),
            http.get(f"/v1/models/{key}", headers=bearer(key)),
            http.post("/v1/chat/completions", json=chat(key), headers=bearer(key)),
            http.get(f"/v1/tenants/{key}", headers=bearer(ADMIN)),
        ]
    assert {answer.status_code for answer in answers} == {404}

    def lines() -> list[str]:  # of these four: an answer is told after it was sent, also those before them
        every = [record.getMessage() for record in caplog.records if record.name == "manylora.access"]
        return [line for line in every if line.endswith(" 404")]

    wait_until(lambda: len(lines()) == 4)
    for text in [*lines(), *(answer.text for answer in answers)]:
        assert key not in text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "é"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": 1}, "name"),
        ({"name": "x", "adapters": "alpha"}, "adapters"),
        ({"name": "x", "adapters": ["a b"]}, "adapters[0]"),
        ({"name": "x", "adapters": ["a", "a+b"]}, "adapters[1]"),
        ({"name": "x", "adapters": ["a"] * 257}, "adapters"),
        ({"name": "x", "base": 1}, "base"),
        ({"name": "x", "weight": 0}, "weight"),
        ({"name": "x", "weight": -1}, "weight"),
        ({"name": "x", "weight": 1e9}, "weight"),
        ({"name": "x", "metadata": {"a": 1}}, "metadata.a"),
        ({"name": "x", "metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"name": "x", "scopes": ["admin"]}, "scopes"),
    ],
)
def test_malformed_tenants_are_refused_by_name(
    http: httpx.Client, body: dict[str, object], param: str
) -> None:
    told = http.post("/v1/tenants", json=body, headers=bearer(ADMIN))
    assert told.status_code == 400, told.text
    assert told.json()["error"]["param"] == param
    assert http.get("/v1/tenants", headers=bearer(ADMIN)).json()["data"] == []


@pytest.mark.parametrize(
    "fields", [{"expires_in": 0}, {"expires_in": 1e99}, {"expires_in": 10**10}, {"scope": "x"}]
)
def test_malformed_keys_are_refused(http: httpx.Client, fields: dict[str, object]) -> None:
    tenant_key(http, "acme")
    told = http.post("/v1/tenants/acme/keys", json=fields, headers=bearer(ADMIN))
    assert told.status_code == 400
    assert told.json()["error"]["param"] == next(iter(fields))


def test_what_is_not_there(http: httpx.Client) -> None:
    tenant_key(http, "acme")
    for method, path, param in (
        ("GET", "/v1/tenants/nobody", "name"),
        ("PATCH", "/v1/tenants/nobody", "name"),
        ("DELETE", "/v1/tenants/nobody%00", "name"),
        ("GET", "/v1/tenants/nobody/keys", "name"),
        ("POST", "/v1/tenants/nobody/keys", "name"),
        ("DELETE", "/v1/tenants/acme/keys/nothing", "key_id"),
        ("DELETE", "/v1/tenants/acme/keys/%00", "key_id"),
        ("POST", "/v1/tenants/acme/keys/nothing/rotate", "key_id"),
    ):
        told = http.request(
            method, path, json={} if method in {"POST", "PATCH"} else None, headers=bearer(ADMIN)
        )
        assert told.status_code == 404, (path, told.text)
        assert told.json()["error"]["code"] == "tenant_not_found"
        assert told.json()["error"]["param"] == param
    again = http.post("/v1/tenants", json={"name": "acme"}, headers=bearer(ADMIN))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "tenant_exists")


def test_tenants_are_listed_a_page_at_a_time(http: httpx.Client) -> None:
    for name in ("b", "a", "c"):
        tenant_key(http, name)
    first = http.get("/v1/tenants?limit=2", headers=bearer(ADMIN)).json()
    assert [tenant["name"] for tenant in first["data"]] == ["a", "b"]
    assert first["has_more"]
    rest = http.get(f"/v1/tenants?after={first['last_id']}", headers=bearer(ADMIN)).json()
    assert [tenant["name"] for tenant in rest["data"]] == ["c"]
    by_name = http.get("/v1/tenants?after=b", headers=bearer(ADMIN)).json()
    assert by_name["data"] == rest["data"]


def test_a_change_leaves_what_is_not_given(http: httpx.Client) -> None:
    tenant_key(http, "acme", ["alpha"], base=False, metadata={"plan": "gold"})
    changed = http.patch(
        "/v1/tenants/acme", json={"adapters": ["beta", "beta"]}, headers=bearer(ADMIN)
    ).json()
    assert (changed["adapters"], changed["base"], changed["metadata"]) == (["beta"], False, {"plan": "gold"})
    assert http.get("/v1/tenants/acme", headers=bearer(ADMIN)).json() == changed


def test_a_server_without_keys_takes_no_tenants(tmp_path: Path, model: Path, adapters: Path) -> None:
    """Its operator would be locked out."""
    with serving(service_of(tmp_path, model, adapters)) as running, running.http() as http:
        told = http.post("/v1/tenants", json={"name": "acme"})
        assert told.status_code == 409
        assert "--admin-api-key" in told.json()["error"]["message"]
        assert status(http, None) == 200


def test_the_server_asks_itself_with_the_rights_of_whom_it_asks_for(
    server: Running, http: httpx.Client
) -> None:
    """Batches of tenants that are gone end here, and no batch of anybody does what an admin may."""
    tenant_key(http, "acme", ["alpha"])
    tenant_id = server.service.tenants.get("acme").id
    app = create_app(server.service)

    def statuses(tenant: str | None) -> list[int]:
        ask = asker(app, tenant)

        async def status_of(path: str, body: Mapping[str, Any]) -> int:
            return (await ask(path, body)).status

        asked = [("/v1/chat/completions", chat(model)) for model in ("alpha", "beta")]
        return [server.call(status_of(*each)) for each in (*asked, ("/v1/tenants", {"name": "more"}))]

    assert statuses(tenant_id) == [200, 404, 403]
    assert statuses(None) == [200, 200, 401]
    assert statuses("gone") == [401, 401, 401]
    http.delete("/v1/tenants/acme", headers=bearer(ADMIN))
    assert statuses(tenant_id) == [401, 401, 401]
