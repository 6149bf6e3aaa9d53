"""Usage of tenants: what is counted is what clients got, also when they left or the server was killed."""

from __future__ import annotations

import csv
import io
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.adapters.errors import RegistryUnavailable
from manylora.adapters.registry.registry import Registry
from tests.support.running_server import Running
from tests.support.server_process import server_process, small_options
from tests.support.tenants import ADMIN, bearer, chat, tenant_key
from tests.support.waiting import wait_until

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(http: httpx.Client, tenant: str = "acme", /, **query: Any) -> dict[str, tuple[int, ...]]:
    """Counts by model."""
    told = http.get("/v1/usage", params={"tenant": tenant, **query}, headers=bearer(ADMIN))
    assert told.status_code == 200, told.text
    return {each["model"]: tuple(each[what] for what in COUNTS) for each in told.json()["data"]}


def received(answer: Mapping[str, Any]) -> tuple[int, int, int]:
    told = answer["usage"]
    cached = told["prompt_tokens_details"]["cached_tokens"]
    return told["prompt_tokens"], cached, told.get("completion_tokens", 0)


def test_counts_are_what_clients_are_told(server: Running, http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", ["alpha", "beta"]))
    long = [{"role": "user", "content": "many words again and again " * 12}]
    asked: list[tuple[str, str, Mapping[str, Any]]] = [
        ("(base)", "/v1/chat/completions", chat("tiny", max_tokens=5)),
        ("alpha", "/v1/chat/completions", chat("alpha", max_tokens=3, messages=long)),
        ("alpha", "/v1/chat/completions", chat("alpha", max_tokens=3, messages=long, n=3)),
        ("(mix)", "/v1/chat/completions", chat("alpha*0.5+beta*0.5", max_tokens=2)),
        ("beta", "/v1/completions", {"model": "beta", "prompt": ["a", "b c"], "n": 2, "max_tokens": 4}),
        ("beta", "/v1/embeddings", {"model": "beta", "input": ["a", "b c"]}),
    ]
    expected: dict[str, tuple[int, ...]] = {}
    for model, path, body in asked:
        answer = http.post(path, json=body, headers=key)
        assert answer.status_code == 200, answer.text
        before = expected.get(model, (0, 0, 0, 0))
        expected[model] = tuple(a + b for a, b in zip(before, (1, *received(answer.json())), strict=True))
    server.wait_until_idle()
    assert expected["alpha"][2] > 0
    assert usage(http) == expected


def test_streams_are_counted_whole_or_as_far_as_they_came(server: Running, http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme"))
    body = chat("tiny", max_tokens=8, stream=True, ignore_eos=True, stream_options={"include_usage": True})
    whole = http.post("/v1/chat/completions", json=body, headers=key).text
    last = json.loads(whole.split("data: ")[-2])
    server.wait_until_idle()
    assert usage(http) == {"(base)": (1, *received(last))}
    prompt = last["usage"]["prompt_tokens"]
    with http.stream("POST", "/v1/chat/completions", json={**body, "max_tokens": 500}, headers=key) as told:
        next(told.iter_lines())
    server.wait_until_idle()
    (counted,) = usage(http).values()
    assert counted[:2] == (2, 2 * prompt)
    assert 8 < counted[3] < 508


def test_what_is_refused_is_not_counted_and_neither_are_others(server: Running, http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", limits={"completion_tokens_per_minute": 3}))
    for body in (chat("absent"), chat("tiny", max_tokens=100_000), chat("tiny", max_tokens=5), {}):
        assert http.post("/v1/chat/completions", json=body, headers=key).status_code in {400, 404}
    assert http.post("/v1/chat/completions", json=chat("tiny"), headers=bearer(ADMIN)).status_code == 200
    server.wait_until_idle()
    assert usage(http) == {}


def test_usage_by_hour_day_and_in_all(server: Running, http: httpx.Client) -> None:
    keys = [bearer(tenant_key(http, name)) for name in ("acme", "globex")]
    for key in keys:
        http.post("/v1/chat/completions", json=chat("tiny"), headers=key)
    server.wait_until_idle()
    for by, width in (("hour", 3600), ("day", 86400)):
        told = http.get(f"/v1/usage?by={by}", headers=bearer(ADMIN)).json()["data"]
        assert {record["start"] % width for record in told} == {0}
        assert {"acme", "globex"} <= {record["tenant"] for record in told}
    assert len(usage(http, **{"from": int(time.time()) + 3600})) == 0
    assert len(usage(http, to=int(time.time()) - 3600)) == 0
    first = http.get("/v1/usage?limit=1", headers=bearer(ADMIN)).json()
    assert (len(first["data"]), first["has_more"]) == (1, True)
    assert http.get("/v1/usage", headers=keys[0]).status_code == 403
    assert http.get("/v1/usage").status_code == 401


def test_metrics_tell_tenants_apart(server: Running, http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "measured", limits={"requests_per_minute": 1}))
    for status in (200, 429):
        assert http.post("/v1/chat/completions", json=chat("tiny"), headers=key).status_code == status
    server.wait_until_idle()
    told = http.get("/metrics", headers=bearer(ADMIN)).text
    assert 'manylora_tenant_requests_total{tenant="measured"} 1.0' in told
    assert 'manylora_tenant_limited_total{tenant="measured"} 1.0' in told
    assert http.get("/metrics", headers=key).status_code == 403


def test_usage_as_a_table(server: Running, http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme"))
    http.post("/v1/chat/completions", json=chat("tiny"), headers=key)
    server.wait_until_idle()
    told = http.get("/v1/usage?format=csv&tenant=acme&by=hour", headers=bearer(ADMIN))
    assert told.headers["content-type"].startswith("text/csv")
    described = http.get("/openapi.json", headers=bearer(ADMIN)).json()["paths"]["/v1/usage"]["get"]
    assert described["responses"]["200"]["content"].keys() == {"application/json", "text/csv"}
    (row,) = csv.DictReader(io.StringIO(told.text))
    assert (row["tenant"], row["model"], row["requests"]) == ("acme", "(base)", "1")
    assert tuple(int(row[what]) for what in COUNTS) == usage(http)["(base)"]
    assert int(row["start"]) % 3600 == 0
    assert http.get("/v1/usage?format=xml", headers=bearer(ADMIN)).status_code == 400


@pytest.mark.parametrize(
    "query", ["by=week", "from=-1", "to=x", "limit=0", "limit=100001", "tenants=a", f"from={2**60}"]
)
def test_malformed_queries_are_refused(http: httpx.Client, query: str) -> None:
    told = http.get(f"/v1/usage?{query}", headers=bearer(ADMIN))
    assert told.status_code == 400
    assert told.json()["error"]["param"] == query.split("=", maxsplit=1)[0]
    assert http.get("/v1/usage?tenant=nobody", headers=bearer(ADMIN)).status_code == 404


def test_counts_wait_for_a_database_that_is_away(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bearer(tenant_key(http, "acme"))
    registry, away = server.service.adapters.registry.usage, True
    add = registry.add

    def sometimes(added: Any) -> None:
        if away:
            raise RegistryUnavailable("away")
        add(added)

    monkeypatch.setattr(registry, "add", sometimes)
    for _ in range(2):
        assert http.post("/v1/chat/completions", json=chat("tiny"), headers=key).status_code == 200
        server.wait_until_idle()
        assert http.get("/v1/usage", headers=bearer(ADMIN)).status_code == 503
    away = False
    assert usage(http)["(base)"][0] == 2


@pytest.mark.sweep  # seconds to start a process of its own
def test_a_killed_server_has_counted_what_ended_a_second_before(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "data"
    options = [*small_options(model, data), "--admin-api-key", ADMIN]
    with server_process(*options) as process, httpx.Client(base_url=process.url, timeout=30) as http:
        key = bearer(tenant_key(http, "acme"))
        told = [http.post("/v1/chat/completions", json=chat("tiny"), headers=key).json() for _ in range(5)]
        with Registry(f"sqlite:///{data / 'registry.db'}") as registry:
            wait_until(lambda: sum(record.counts.requests for record in registry.usage.read(limit=10)) == 5)
        process.signal(signal.SIGKILL)
        process.process.wait(30)
    with Registry(f"sqlite:///{data / 'registry.db'}") as registry:
        (record,) = registry.usage.read(limit=10)
        assert registry.tenants.snapshot() is not None
    expected = [sum(each) for each in zip(*((1, *received(answer)) for answer in told), strict=True)]
    assert list(record.counts) == expected
