"""Limits of tenants on every route: what is refused, what is told, and that everything is given back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.errors import QueueFull
from tests.support.running_server import Running
from tests.support.tenant_routes import ASKING
from tests.support.tenants import ADMIN, bearer, chat, tenant_key
from tests.support.waiting import wait_until


def remaining(answer: httpx.Response, what: str = "tokens") -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{what}"])


def settled(server: Running, http: httpx.Client, key: str, what: str = "tokens") -> int:
    """What remains once nothing runs."""
    server.wait_until_idle()
    return remaining(http.get("/v1/models", headers=bearer(key)), what)


def running(server: Running) -> int:
    """Requests of the only tenant that hold a reservation."""
    (tenant,) = server.service.tenants.all()
    return server.service.tenants.meters.of(tenant.id).running


@pytest.mark.parametrize("path", ASKING)
def test_every_route_takes_of_the_limits_what_it_used(server: Running, http: httpx.Client, path: str) -> None:
    key = tenant_key(http, "acme", ["alpha"], limits={"tokens_per_minute": 1000, "requests_per_minute": 100})
    before = settled(server, http, key)
    answer = http.post(path, json=ASKING[path](3), headers=bearer(key))
    assert answer.status_code == 200, answer.text
    taken = before - settled(server, http, key)
    assert taken > 0
    usage = answer.json().get("usage") or {}
    if "total_tokens" in usage and path != "/v1/rerank":
        assert taken == usage["total_tokens"]
    assert settled(server, http, key, "requests") < 100
    assert running(server) == 0


@pytest.mark.parametrize("path", ASKING)
def test_every_route_is_refused_what_is_too_much(server: Running, http: httpx.Client, path: str) -> None:
    key = tenant_key(http, "acme", ["alpha"], limits={"requests_per_minute": 2})
    for _ in range(2):
        assert http.post("/v1/chat/completions", json=chat("tiny"), headers=bearer(key)).status_code == 200
    told = http.post(path, json=ASKING[path](3), headers=bearer(key))
    assert told.status_code == 429, told.text
    assert told.json()["error"]["type"] == "rate_limit_error"
    assert told.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(told.headers["retry-after"]) <= 60
    assert remaining(told, "requests") == 0
    assert running(server) == 0


def test_headers_are_openais_and_on_every_answer(http: httpx.Client) -> None:
    limits = {"tokens_per_minute": 500, "requests_per_minute": 10, "completion_tokens_per_minute": 400}
    key = tenant_key(http, "acme", limits=limits)
    for method, path, body in (
        ("GET", "/v1/models", None),
        ("GET", "/v1/files/absent", None),
        ("GET", "/metrics", None),
        ("POST", "/v1/chat/completions", chat("tiny", stream=True)),
        ("POST", "/v1/chat/completions", {}),
    ):
        headers = http.request(method, path, json=body, headers=bearer(key)).headers
        assert headers["x-ratelimit-limit-requests"] == "10"
        assert headers["x-ratelimit-limit-tokens"] == "500"
        assert headers["x-ratelimit-limit-completion-tokens"] == "400"
        assert headers["x-ratelimit-reset-tokens"].endswith("s")
        assert "x-ratelimit-limit-prompt-tokens" not in headers
    for other in (bearer(ADMIN), {}):
        assert "x-ratelimit-limit-requests" not in http.get("/v1/models", headers=other).headers


def test_what_never_fits_is_no_matter_of_time(http: httpx.Client) -> None:
    key = tenant_key(http, "acme", limits={"completion_tokens_per_minute": 10})
    told = http.post("/v1/chat/completions", json=chat("tiny", max_tokens=11), headers=bearer(key))
    assert told.status_code == 400
    assert told.json()["error"]["param"] == "max_tokens"
    assert "11 completion tokens" in told.json()["error"]["message"]
    fits = http.post("/v1/chat/completions", json=chat("tiny", max_tokens=10), headers=bearer(key))
    assert fits.status_code == 200


def test_concurrent_streams_never_pass_the_limit(server: Running, http: httpx.Client) -> None:
    """Forty at once against a limit of four: the engine never has more, and nothing stays behind."""
    key = tenant_key(http, "acme", limits={"max_concurrent_requests": 4})
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.0005):
            most = max(most, server.service.engine.num_open)

    def ask(which: int) -> int:
        body = chat("tiny", max_tokens=30, stream=True, ignore_eos=True)
        with (
            server.http() as own,
            own.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key)) as told,
        ):
            if told.status_code == 200 and which % 3:  # the others hang up after the first piece
                for _ in told.iter_lines():
                    pass
            elif told.status_code == 200:
                next(told.iter_lines())
            return told.status_code

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(ask, range(40)))
    ended.set()
    watcher.join()
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 4
    assert 0 < most <= 4
    server.wait_until_idle()
    assert running(server) == 0


def test_a_race_for_the_last_tokens_is_won_once(server: Running, http: httpx.Client) -> None:
    limits = {"completion_tokens_per_minute": 50}
    key = tenant_key(http, "acme", limits=limits)
    body = chat("tiny", max_tokens=20, ignore_eos=True)

    def ask(_: int) -> int:
        with server.http() as own:
            return own.post("/v1/chat/completions", json=body, headers=bearer(key)).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(8)))
    assert sorted(statuses) == [200, 200] + [429] * 6
    assert settled(server, http, key, "completion-tokens") == 10


def test_who_hangs_up_gets_the_rest_back(server: Running, http: httpx.Client) -> None:
    key = tenant_key(http, "acme", limits={"tokens_per_minute": 2000})
    body = chat("tiny", max_tokens=500, stream=True, ignore_eos=True)
    with http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key)) as told:
        assert remaining(told) < 1500
        next(told.iter_lines())
    wait_until(lambda: not running(server))
    assert 1500 < settled(server, http, key) < 2000


def test_what_the_engine_refuses_costs_nothing(server: Running, http: httpx.Client) -> None:
    key = tenant_key(http, "acme", limits={"tokens_per_minute": 5000, "requests_per_minute": 100})
    too_many = {"model": "tiny", "prompt": ["x"] * 128, "n": 16, "max_tokens": 1}
    too_long = {"model": "tiny", "prompt": "x", "max_tokens": 100_000}
    for body in (too_many, too_long, {"model": "tiny", "prompt": "x", "max_tokens": 1, "temperature": -1}):
        assert http.post("/v1/completions", json=body, headers=bearer(key)).status_code == 400
    assert settled(server, http, key) == 5000
    assert settled(server, http, key, "requests") == 100


def test_a_queue_that_fills_up_on_the_way_costs_what_has_run(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts of a request or none: those that were taken are taken back."""
    key = tenant_key(http, "acme", limits={"completion_tokens_per_minute": 5000, "requests_per_minute": 100})
    submit, taken = server.service.engine.submit, 0

    def full_at_the_second(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken % 2 == 0:
            arguments[1].release()  # as the engine does with what it was given
            raise QueueFull("full", 3.0)
        return submit(*arguments)

    monkeypatch.setattr(server.service.engine, "submit", full_at_the_second)
    body = {"model": "tiny", "prompt": ["x", "y"], "max_tokens": 1000, "ignore_eos": True}
    told = http.post("/v1/completions", json=body, headers=bearer(key))
    assert (told.status_code, told.json()["error"]["code"]) == (429, "queue_full")
    assert settled(server, http, key, "completion-tokens") > 4000
    assert settled(server, http, key, "requests") == 99
    assert running(server) == 0


def test_tenants_do_not_share_limits_and_others_have_none(http: httpx.Client) -> None:
    acme = tenant_key(http, "acme", limits={"requests_per_minute": 1})
    globex = tenant_key(http, "globex", limits={"requests_per_minute": 1})
    for key, statuses in ((acme, (200, 429)), (globex, (200, 429)), (ADMIN, (200, 200))):
        for status in statuses:
            told = http.post("/v1/chat/completions", json=chat("tiny"), headers=bearer(key))
            assert told.status_code == status
    more = {"limits": {"requests_per_minute": 2}}
    http.patch("/v1/tenants/acme", json=more, headers=bearer(ADMIN))
    assert http.post("/v1/chat/completions", json=chat("tiny"), headers=bearer(acme)).status_code == 200
    http.patch("/v1/tenants/acme", json={"limits": {}}, headers=bearer(ADMIN))
    told = http.post("/v1/chat/completions", json=chat("tiny"), headers=bearer(acme))
    assert told.status_code == 200
    assert not any(name.startswith("x-ratelimit") for name in told.headers)


def test_openais_client_understands(server: Running, http: httpx.Client) -> None:
    key = tenant_key(http, "acme", limits={"requests_per_minute": 1})
    client = server.client(api_key=key)
    raw = client.chat.completions.with_raw_response.create(**chat("tiny"))
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(**chat("tiny"))
    assert limited.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("limits", [*({"tokens_per_minute": n} for n in (0, -1, 1.5, 2**60)), {"rpm": 1}, 5])
def test_malformed_limits_are_refused(http: httpx.Client, limits: object) -> None:
    told = http.post("/v1/tenants", json={"name": "x", "limits": limits}, headers=bearer(ADMIN))
    assert told.status_code == 400
    assert told.json()["error"]["param"].startswith("limits")


def test_requests_run_in_their_tenants_turn(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the engine says for whom it is, with the weight of now, on every route."""
    key = tenant_key(http, "acme", ["alpha"], weight=2.5)
    (tenant,) = server.service.tenants.all()
    submit, clients = server.service.engine.submit, set[Client]()

    def watched(request: Any, *arguments: Any) -> Any:
        clients.add(request.client)
        return submit(request, *arguments)

    monkeypatch.setattr(server.service.engine, "submit", watched)
    for path, body in ASKING.items():
        assert http.post(path, json=body(2), headers=bearer(key)).status_code == 200
    assert clients == {Client(tenant.id, 2.5)}
    http.patch("/v1/tenants/acme", json={"weight": 1}, headers=bearer(ADMIN))
    clients.clear()
    for given in (key, ADMIN):
        http.post("/v1/chat/completions", json=chat("tiny"), headers=bearer(given))
    assert clients == {Client(tenant.id, 1.0), EVERYBODY}
