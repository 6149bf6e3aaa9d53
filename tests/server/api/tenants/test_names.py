"""Tenants have adapters of their own: names beside each other's, what may be done with them, and sharing."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from manylora.adapters.registry.registry import Registry
from tests.support.running_server import Running
from tests.support.tenants import (
    ADMIN,
    BOTH,
    Key,
    answer,
    bearer,
    chat,
    manager,
    models,
    new_key,
    publish,
    tenant_key,
)
from tests.support.waiting import wait_until


def test_two_tenants_may_both_have_a_name(http: httpx.Client, adapters: Path) -> None:
    acme, globex = manager(http, "acme"), manager(http, "globex")
    for key, adapter in ((acme, "alpha"), (globex, "beta")):
        made = publish(http, key, "support", adapters / adapter)
        assert made.status_code == 201, made.text
        assert (made.json()["id"], made.json()["state"]) == ("support", "ready")
        assert models(http, key) == ["tiny", "support"]
    plain = [answer(http, bearer(ADMIN), name)[1] for name in ("alpha", "beta")]
    told = [answer(http, key, "support") for key in (acme, globex)]
    assert [text for _, text in told] == plain
    assert all(model.startswith("support@") for model, _ in told)
    admin = bearer(ADMIN)
    assert {"acme/support", "globex/support"} <= set(models(http, admin))
    assert answer(http, admin, "globex/support") == (f"globex/{told[1][0]}", plain[1])
    listed = http.get("/v1/adapters", headers=acme).json()
    assert [adapter["id"] for adapter in listed["data"]] == ["support"]
    assert answer(http, acme, "acme/support") == told[0]  # in full is right as well
    mixed = http.post("/v1/chat/completions", json=chat("support*0.5+support*0.5"), headers=acme)
    assert mixed.json()["model"].startswith("support@")
    assert http.get("/v1/models/support", headers=acme).json()["id"] == "support"


def test_what_is_one_servers_alone_is_no_tenants(http: httpx.Client, adapters: Path) -> None:
    admin = bearer(ADMIN)
    assert http.post("/v1/tenants", json={"name": "pods"}, headers=admin).status_code == 400
    assert publish(http, admin, "pods/other/support", adapters / "alpha").status_code == 201
    key = bearer(tenant_key(http, "acme", ["*"]))
    for model in ("pods/other/support", "support"):
        assert http.post("/v1/chat/completions", json=chat(model), headers=key).status_code == 404
    assert "pods/other/support" not in models(http, key)
    assert "pods/other/support" not in models(http, admin)  # nor another server's
    assert http.get("/v1/adapters/pods/other/support", headers=admin).status_code == 200
    assert http.delete("/v1/adapters/pods/other/support", headers=admin).status_code == 200


def test_what_is_its_own_stands_before_what_is_shared(http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "acme", adapters=["alpha"])
    shared = answer(http, key, "alpha")
    assert publish(http, key, "alpha", adapters / "beta").status_code == 201
    assert answer(http, key, "alpha") != shared
    assert models(http, key) == ["tiny", "alpha"]
    assert http.delete("/v1/adapters/alpha", headers=key).json()["id"] == "alpha"
    assert answer(http, key, "alpha") == shared
    assert http.delete("/v1/adapters/alpha", headers=key).status_code == 404  # the shared one is not its own


def test_an_adapter_is_shared_with_whom_its_owner_says(http: httpx.Client, adapters: Path) -> None:
    acme, globex, other = (manager(http, name) for name in ("acme", "globex", "other"))
    publish(http, acme, "support", adapters / "alpha")

    def share(*tenants: str) -> None:
        told = http.patch("/v1/adapters/support", json={"shared_with": tenants}, headers=acme)
        assert told.json()["shared_with"] == sorted(tenants), told.text

    def sees(key: Key) -> bool:
        told = http.post("/v1/chat/completions", json=chat("acme/support"), headers=key)
        assert told.status_code in {200, 404}
        assert ("acme/support" in models(http, key)) == (told.status_code == 200)
        return told.status_code == 200

    assert (sees(globex), sees(other)) == (False, False)
    share("globex", "nobody")
    assert (sees(globex), sees(other)) == (True, False)
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rollback"), ("POST", "/export")):
        told = http.request(method, f"/v1/adapters/acme/support{path}", headers=globex)
        assert told.status_code == 404, path
    share("*")
    assert (sees(globex), sees(other)) == (True, True)
    share("other", "globex")
    http.delete("/v1/tenants/globex", headers=bearer(ADMIN))
    again = manager(http, "globex")
    assert (sees(again), sees(other)) == (False, True)
    assert http.get("/v1/adapters/support", headers=acme).json()["shared_with"] == ["other"]
    share()
    assert not sees(other)


@pytest.mark.parametrize("shares", [["a/b"], [""], ["a\n"], ["x" * 65], ["a"] * 257, "acme", [1], None])
def test_malformed_shares_are_refused(http: httpx.Client, shares: object) -> None:
    key = manager(http, "acme")
    told = http.patch("/v1/adapters/support", json={"shared_with": shares}, headers=key)
    assert told.status_code == 400
    assert told.json()["error"]["param"].startswith("shared_with")


def test_what_keys_are_for(http: httpx.Client, adapters: Path) -> None:
    tenant_key(http, "acme", ["alpha"])
    infer, manage, admin = (bearer(new_key(http, "acme", scopes=[s])["key"]) for s in (*BOTH, "admin"))
    for key, statuses in ((infer, (200, 403, 403)), (manage, (403, 200, 403)), (admin, (200, 200, 200))):
        asked = http.post("/v1/chat/completions", json=chat("alpha"), headers=key).status_code
        managed = http.get("/v1/adapters", headers=key).status_code
        operated = http.get("/v1/tenants", headers=key).status_code
        assert (asked, managed, operated) == statuses
    assert publish(http, infer, "support", adapters / "alpha").status_code == 403
    assert "alpha" not in http.get("/v1/adapters", headers=manage).text
    assert "alpha" in http.get("/v1/adapters", headers=admin).text
    key = new_key(http, "acme", scopes=["manage"])
    rotated = http.post(f"/v1/tenants/acme/keys/{key['id']}/rotate", headers=bearer(ADMIN)).json()
    assert rotated["scopes"] == ["manage"]
    for scopes in ([], ["all"], "infer", None):
        told = http.post("/v1/tenants/acme/keys", json={"scopes": scopes}, headers=bearer(ADMIN))
        assert told.status_code == 400
        assert told.json()["error"]["param"].startswith("scopes")


def test_tenants_upload_and_name_no_source(http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "acme")
    for source in (str(adapters / "alpha"), f"file://{adapters}/alpha", "hf://org/repository"):
        told = http.put("/v1/adapters/support?wait=true", json={"source": source}, headers=key)
        assert (told.status_code, told.json()["error"]["code"]) == (403, "source_forbidden")
        assert str(adapters) not in told.text
    assert http.get("/v1/adapters/support", headers=key).status_code == 404
    for name in ("tiny", "pin", "a b", "x" * 128, "..", "a//b"):
        assert publish(http, key, name, adapters / "alpha").status_code >= 400, name
    assert models(http, key) == ["tiny"]


def test_faults_of_an_upload_are_told_and_nothing_of_the_server(
    http: httpx.Client, adapters: Path, tmp_path: Path
) -> None:
    key = manager(http, "acme")
    (tmp_path / "bad").mkdir()
    for file in (adapters / "alpha").iterdir():
        (tmp_path / "bad" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "bad" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": "x"}')
    told = publish(http, key, "support", tmp_path / "bad")
    assert told.status_code == 422
    assert "target_modules" in told.text
    later = http.get("/v1/adapters/support", headers=key)
    assert later.json()["publication"]["error"]["message"] == told.json()["error"]["message"]
    for text in (told.text, later.text):
        assert "/tmp" not in text
        assert str(tmp_path) not in text


def test_aliases_are_its_own_and_stand_for_its_own(http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "acme", adapters=["beta"])
    publish(http, key, "support", adapters / "alpha")
    admin = bearer(ADMIN)
    assert http.put("/v1/aliases/hidden", json={"target": "acme/support"}, headers=admin).status_code == 200

    def put(name: str, target: str) -> httpx.Response:
        return http.put(f"/v1/aliases/{name}", json={"target": target}, headers=key)

    made = put("live", "support*0.5")
    assert (made.json()["id"], made.json()["split"][0]["target"]) == ("live", "support*0.5")
    assert answer(http, key, "live")[0].startswith("support@")
    shown = http.get("/v1/aliases/live", headers=key).json()
    assert (shown["id"], shown["arms"][0]["target"]) == ("live", "support*0.5")
    assert [alias["id"] for alias in http.get("/v1/aliases", headers=key).json()["data"]] == ["live"]
    assert models(http, key) == ["tiny", "beta", "support", "live"]
    for target, status in (("absent", 404), ("alpha", 404), ("beta", 400), ("live", 400)):
        told = put("second", target)
        assert told.status_code == status, told.text
        assert "hidden" not in told.text
    assert put("support", "support").status_code == 409
    assert put("tiny", "support").status_code == 409
    blocked = http.delete("/v1/adapters/support", headers=key)
    assert blocked.status_code == 409
    assert "hidden" not in blocked.text
    scored = http.post("/v1/chat/completions", json=chat("live"), headers=key).json()["id"]
    score = http.post("/v1/feedback", json={"response_id": scored, "score": 1}, headers=key).json()
    assert (score["alias"], score["arm"]) == ("live", "support*0.5")
    assert http.delete("/v1/aliases/live", headers=key).json()["id"] == "live"
    assert http.delete("/v1/aliases/hidden", headers=key).status_code == 404
    http.delete("/v1/aliases/hidden", headers=admin)


def test_what_is_composed_of_what_it_sees_is_its_own(http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "acme", adapters=["alpha"])
    publish(http, key, "own", adapters / "beta")

    def compose(*names: str) -> httpx.Response:
        body = {"members": [{"name": name, "weight": 0.5} for name in names]}
        return http.post("/v1/adapters/both/compose?wait=true", json=body, headers=key)

    for hidden in ("gamma", "absent"):
        told = compose("own", hidden)
        assert (told.status_code, told.json()["error"]["param"]) == (404, "members[1].name")
    made = compose("own", "alpha")
    assert made.status_code == 201, made.text
    assert made.json()["id"] == "both"
    assert len(made.json()["revisions"][0]["lineage"]["members"]) == 2
    assert answer(http, key, "both")[0].startswith("both@")
    http.patch("/v1/tenants/acme", json={"adapters": []}, headers=bearer(ADMIN))
    shown = http.get("/v1/adapters/both", headers=key).json()
    assert shown["revisions"][0]["lineage"] is None  # it names what is there no more


def test_a_tenant_with_adapters_goes_with_them_or_not_at_all(http: httpx.Client, adapters: Path) -> None:
    admin = bearer(ADMIN)
    key = manager(http, "acme")
    publish(http, key, "support", adapters / "alpha")
    http.put("/v1/aliases/live", json={"target": "support"}, headers=key)
    told = http.delete("/v1/tenants/acme", headers=admin)
    assert told.status_code == 409
    assert "acme/live" in told.json()["error"]["message"]
    assert http.delete("/v1/tenants/acme?adapters=true", headers=admin).status_code == 200
    assert not any(name.startswith("acme/") for name in models(http, admin))
    http.put("/v1/aliases/acme/old", json={"target": "beta"}, headers=admin)
    assert http.post("/v1/tenants", json={"name": "acme"}, headers=admin).status_code == 409
    again = bearer(tenant_key(http, "acme", ["beta"], adopt=True))
    assert answer(http, again, "old")[0].startswith("beta@")
    assert http.delete("/v1/tenants/acme?adapters=true", headers=admin).status_code == 200


def test_other_servers_hear_of_adapters_and_shares(
    server: Running, http: httpx.Client, adapters: Path
) -> None:
    acme, globex = manager(http, "acme"), manager(http, "globex")
    publish(http, acme, "support", adapters / "alpha")
    with Registry(server.service.config.registry) as other:
        other.shares.put("acme/support", ["globex"])
        wait_until(lambda: "acme/support" in models(http, globex))
        other.tenants.remove("globex")
        wait_until(lambda: http.get("/v1/models", headers=globex).status_code == 401)
        assert other.names.get("acme/support").shared == ()


def test_exports_are_a_tenants_own(http: httpx.Client, adapters: Path) -> None:
    """Here they are off, which is told of what is there and nothing else."""
    acme, globex = manager(http, "acme"), manager(http, "globex")
    publish(http, acme, "support", adapters / "alpha")
    told = {
        who: http.post("/v1/adapters/support/export", headers=key).json()["error"]["code"]
        for who, key in (("acme", acme), ("globex", globex))
    }
    assert told == {"acme": "export_not_allowed", "globex": "model_not_found"}
    for name in ("alpha", "support*0.5+alpha*0.5"):
        assert http.post(f"/v1/adapters/{name}/export", headers=acme).status_code == 404


@pytest.mark.parametrize("end", [True, False])
def test_a_revoked_key_ends_what_runs_with_it_if_asked(
    server: Running, http: httpx.Client, end: bool
) -> None:
    tenant_key(http, "acme")
    key = new_key(http, "acme")
    body = chat("tiny", max_tokens=400 if end else 20, stream=True, ignore_eos=True)
    revoke = f"/v1/tenants/acme/keys/{key['id']}?end={str(end).lower()}"
    with (
        server.http() as other,
        http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key["key"])) as told,
    ):
        lines = told.iter_lines()
        next(lines)
        assert other.delete(revoke, headers=bearer(ADMIN)).status_code == 200
        if end:
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        else:
            assert "data: [DONE]" in list(lines)
    server.wait_until_idle()
    assert http.get("/v1/models", headers=bearer(key["key"])).status_code == 401
    listed = http.get("/v1/tenants/acme/keys", headers=bearer(ADMIN)).json()["data"]
    assert key["id"] not in {each["id"] for each in listed}


def test_another_server_ends_them_too(server: Running, http: httpx.Client) -> None:
    tenant_key(http, "acme")
    key = new_key(http, "acme")
    body = chat("tiny", max_tokens=450, stream=True, ignore_eos=True)
    with http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key["key"])) as told:
        lines = told.iter_lines()
        next(lines)
        with Registry(server.service.config.registry) as other:
            other.tenants.remove_key("acme", key["id"], end=True)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    server.wait_until_idle()
