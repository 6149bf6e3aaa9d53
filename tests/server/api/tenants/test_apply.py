"""Tenants as a file has them: told before they are changed, and then exactly so."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.server.api.tenants.apply import apply_again, read_file
from manylora.server.errors import ConfigError
from tests.support.running_server import serving
from tests.support.served_adapters import service_of
from tests.support.server_process import server_process, small_options
from tests.support.tenants import ADMIN, bearer, tenant_key
from tests.support.waiting import wait_until

FILE = """
tenants:
  acme:
    adapters: [alpha]
    weight: 2
    limits: {requests_per_minute: 60}
  globex:
    base: false
    metadata: {plan: gold}
"""


def put(http: httpx.Client, body: Any, *, dry_run: bool = False, status: int = 200) -> Any:
    told = http.put(f"/v1/tenants?dry_run={str(dry_run).lower()}", json=body, headers=bearer(ADMIN))
    assert told.status_code == status, told.text
    return told.json()["data"] if status == 200 else told.json()["error"]


def known(http: httpx.Client) -> dict[str, Any]:
    data = http.get("/v1/tenants", headers=bearer(ADMIN)).json()["data"]
    return {tenant["name"]: tenant for tenant in data}


def test_a_dry_run_tells_what_the_next_one_does(http: httpx.Client) -> None:
    tenant_key(http, "acme", ["alpha"], metadata={"plan": "gold"})
    tenant_key(http, "other")
    body = {"tenants": {"acme": {"adapters": ["alpha"], "weight": 2}, "globex": {"base": False}}}
    before = known(http)
    told = put(http, body, dry_run=True)
    assert known(http) == before
    assert [(each["action"], each["tenant"]) for each in told] == [("change", "acme"), ("create", "globex")]
    assert told[0]["settings"] == {
        "weight": {"before": 1.0, "after": 2.0},
        "metadata": {"before": {"plan": "gold"}, "after": {}},
    }
    assert put(http, body) == told
    assert put(http, body) == []
    after = known(http)
    assert after["acme"]["id"] == before["acme"]["id"]
    assert (after["acme"]["weight"], after["globex"]["base"]) == (2.0, False)
    assert "other" in after
    gone = put(http, {**body, "delete_others": True})
    assert [(each["action"], each["tenant"]) for each in gone] == [("delete", "other")]
    assert set(known(http)) == {"acme", "globex"}


def test_nothing_is_changed_if_one_can_not_be(http: httpx.Client) -> None:
    tenant_key(http, "globex")
    http.put("/v1/aliases/globex/live", json={"target": "alpha"}, headers=bearer(ADMIN))
    body = {"tenants": {"acme": {}}, "delete_others": True}
    assert "globex/live" in put(http, body, status=409)["message"]
    assert set(known(http)) == {"globex"}
    http.put("/v1/aliases/later/live", json={"target": "alpha"}, headers=bearer(ADMIN))
    put(http, {"tenants": {"later": {}}}, status=409)
    put(http, {"tenants": {"later": {}}, "adopt": True})
    assert set(known(http)) == {"globex", "later"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tenants"),
        ({"tenants": []}, "tenants"),
        ({"tenants": {"a/b": {}}}, "tenants.a/b"),
        ({"tenants": {"a": {"weight": 0}}}, "tenants.a.weight"),
        ({"tenants": {"a": {"name": "b"}}}, "tenants.a.name"),
        ({"tenants": {"a": None}}, "tenants.a"),
        ({"tenants": {}, "keys": []}, "keys"),
        ({"tenants": {}, "delete_others": 1}, "delete_others"),
    ],
)
def test_malformed_tenants_are_refused(http: httpx.Client, body: Any, param: str) -> None:
    assert put(http, body, status=400)["param"].startswith(param)


def test_a_server_begins_with_its_file_and_reads_it_again(
    tmp_path: Path, model: Path, adapters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(FILE)
    service = service_of(tmp_path / "data", model, adapters, admin_api_key=[ADMIN], tenants=file)
    with serving(service) as running, running.http() as http:
        found = known(http)
        assert found["acme"]["limits"]["requests_per_minute"] == 60
        assert found["globex"]["metadata"] == {"plan": "gold"}
        file.write_text(FILE.replace("weight: 2", "weight: 3"))
        running.call(apply_again(service, file))
        assert known(http)["acme"]["weight"] == 3
        faults = ("tenants: {a: {weight: x}}", "tenants: [", "- 1", "tenants: {a: {default_adapter: a b}}")
        for broken in faults:
            file.write_text(broken)
            caplog.clear()
            with caplog.at_level(logging.ERROR):
                running.call(apply_again(service, file))
            assert str(file) in caplog.text
            assert "tenants stay as they are" in caplog.text
        file.unlink()
        running.call(apply_again(service, file))
        assert known(http)["acme"]["weight"] == 3


def test_a_file_that_is_at_fault_keeps_a_server_from_starting(
    tmp_path: Path, model: Path, adapters: Path
) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants: {acme: {weight: -1, colour: red}}")
    with pytest.raises(ConfigError, match=r"tenants\.acme\.weight") as refused:
        read_file(file)
    assert "colour" in str(refused.value)


@pytest.mark.sweep  # seconds to start a process of its own
def test_hang_up_reads_the_file_again_and_ends_nothing(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(FILE)
    options = [*small_options(model, tmp_path / "data"), "--admin-api-key", ADMIN, "--tenants", str(file)]
    with server_process(*options) as process, httpx.Client(base_url=process.url, timeout=30) as http:
        file.write_text(FILE.replace("weight: 2", "weight: 5"))
        process.signal(signal.SIGHUP)
        wait_until(lambda: known(http)["acme"]["weight"] == 5)
        assert http.get("/health").status_code == 200
