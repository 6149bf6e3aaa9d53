"""Budgets of a month, limits of single adapters, room for adapters, and what stands for the base model."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.adapters.registry.tenants.records import TenantLimits
from manylora.adapters.registry.tenants.usage import Counts, Place
from manylora.server.errors import RateLimited
from manylora.server.tenants.limit_headers import headers_of
from manylora.server.tenants.limits import Cost
from manylora.server.tenants.meter import Meter
from tests.support.running_server import Running
from tests.support.tenants import ADMIN, answer, bearer, chat, manager, models, publish, tenant_key

MONTHLY = "x-ratelimit-remaining-monthly-tokens"


def test_a_month_has_a_budget_that_restarts_do_not_renew(server: Running, http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", limits={"monthly_tokens": 2000}))
    (tenant,) = server.service.tenants.all()
    used = Counts(3, 900, 0, 100)
    hour = int(time.time()) // 3600 * 3600
    server.service.adapters.registry.usage.add({Place(tenant.id, "acme", hour, "(base)"): used})
    told = http.post("/v1/chat/completions", json=chat("tiny", max_tokens=4, ignore_eos=True), headers=key)
    assert told.status_code == 200
    took = told.json()["usage"]["total_tokens"]
    server.wait_until_idle()
    server.call(server.service.tenants.usage.save())
    left = http.get("/v1/models", headers=key).headers
    assert int(left[MONTHLY]) == 1000 - took
    assert 0 < int(left["x-ratelimit-reset-monthly-tokens"][:-1]) <= 31 * 86400
    refused = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 500, "n": 2,
                                                 "ignore_eos": True}, headers=key)  # fmt: skip
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert int(refused.headers["retry-after"]) > 60 or datetime.now(UTC).day >= 28
    never = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 500, "n": 8},
                      headers=key)  # fmt: skip
    assert never.status_code == 400
    http.patch("/v1/tenants/acme", json={"limits": {"monthly_tokens": 5000}}, headers=bearer(ADMIN))
    assert http.post("/v1/chat/completions", json=chat("tiny"), headers=key).status_code == 200


def test_a_new_month_begins_with_nothing_used() -> None:
    now = datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()
    meter, limits = Meter(today=lambda: now), TenantLimits(monthly_tokens=100)
    meter.used_in_month = 0
    first = meter.reserve(limits, Cost(50, 50))
    with pytest.raises(RateLimited) as refused:
        meter.reserve(limits, Cost(1, 0))
    assert refused.value.retry_after == 60
    first.settle(Cost(50, 40))
    meter.saved(90)
    assert headers_of(meter.left(limits))[MONTHLY] == "10"
    running = meter.reserve(limits, Cost(5, 5))
    now += 120
    assert headers_of(meter.left(limits))[MONTHLY] == "90"  # what runs counts where it ends
    running.settle(Cost(5, 0))
    assert headers_of(meter.left(limits))[MONTHLY] == "95"
    meter.reserve(limits, Cost(95, 0))


def test_one_adapter_has_limits_of_its_own(http: httpx.Client) -> None:
    limits = {"beta": {"requests_per_minute": 1}, "al*": {"completion_tokens_per_minute": 3}}
    key = bearer(tenant_key(http, "acme", ["alpha", "beta"], adapter_limits=limits))

    def ask(model: str) -> int:
        return http.post("/v1/chat/completions", json=chat(model), headers=key).status_code

    assert [ask("beta"), ask("beta")] == [200, 429]
    refused = http.post("/v1/chat/completions", json=chat("beta*0.5"), headers=key).json()["error"]
    assert "of 1 a minute with 'beta' 1 are taken" in refused["message"]
    assert ask("beta*0.5") == ask("beta*0.1+alpha*0.1") == 429  # whatever it is part of
    assert [ask("alpha"), ask("tiny")] == [200, 200]
    told = http.post("/v1/chat/completions", json=chat("alpha", max_tokens=4), headers=key)
    assert told.status_code == 400
    assert "your limit with 'alpha' is 3 a minute" in told.json()["error"]["message"]
    shown = http.get("/v1/tenants/acme", headers=bearer(ADMIN)).json()
    assert shown["adapter_limits"] == limits


def test_headers_tell_the_limit_of_which_least_is_left(http: httpx.Client) -> None:
    limits = {
        "beta": {"requests_per_minute": 2},
        "alpha": {"requests_per_minute": 500, "tokens_per_minute": 900},
    }
    own = {"requests_per_minute": 50}
    key = bearer(tenant_key(http, "acme", ["alpha", "beta"], limits=own, adapter_limits=limits))

    def told(model: str, path: str = "/v1/chat/completions", **fields: Any) -> dict[str, str]:
        body = chat(model) if path == "/v1/chat/completions" else {"model": model, "input": "Hello"}
        headers = http.post(path, json={**body, **fields}, headers=key).headers
        start = "x-ratelimit-"
        return {
            name.removeprefix(start): value
            for name, value in headers.items()
            if name.startswith((start + "limit", start + "remaining"))
        }

    assert told("tiny") == {"limit-requests": "50", "remaining-requests": "49"}
    assert told("beta") == {"limit-requests": "2", "remaining-requests": "1"}
    assert told("beta", path="/v1/embeddings")["remaining-requests"] == "0"
    assert told("beta", stream=True) == {"limit-requests": "2", "remaining-requests": "0"}  # which is a 429
    assert told("beta*0.5+alpha*0.5")["limit-requests"] == "2"
    answer = told("alpha")
    assert answer["limit-requests"] == "50"  # of 500 more are left
    assert answer["limit-tokens"] == "900"
    assert int(answer["remaining-tokens"]) < 900
    assert told("missing") == {"limit-requests": "50", "remaining-requests": "46"}


def test_a_default_adapter_stands_for_the_base(http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "acme", base=False, default_adapter="support*0.5")
    assert models(http, key) == ["tiny"]
    assert http.post("/v1/chat/completions", json=chat("tiny"), headers=key).status_code == 404
    publish(http, key, "support", adapters / "alpha")
    assert answer(http, key, "tiny") == answer(http, key, "support*0.5")
    assert answer(http, key, "tiny")[0].startswith("support@")
    assert http.post("/tokenize", json={"prompt": "x"}, headers=key).status_code == 200
    http.patch("/v1/tenants/acme", json={"default_adapter": ""}, headers=bearer(ADMIN))
    assert http.post("/v1/chat/completions", json=chat("tiny"), headers=key).status_code == 404
    for wrong in ("a b", "a@", "x" * 5000, 1):
        told = http.patch("/v1/tenants/acme", json={"default_adapter": wrong}, headers=bearer(ADMIN))
        assert (told.status_code, told.json()["error"]["param"]) in {(400, "default_adapter"), (400, "model")}


def test_adapters_have_so_much_room(server: Running, http: httpx.Client, adapters: Path) -> None:
    key = manager(http, "acme")
    assert publish(http, key, "first", adapters / "alpha").status_code == 201
    took = server.service.adapters.registry.revisions.bytes_of("acme/")
    assert took > 0
    assert server.service.adapters.registry.revisions.bytes_of("acm_/") == 0
    sizes = [sum(f.stat().st_size for f in (adapters / name).iterdir()) for name in ("alpha", "beta")]
    room = {"limits": {"adapter_bytes": max(sizes)}}
    http.patch("/v1/tenants/acme", json=room, headers=bearer(ADMIN))
    told = publish(http, key, "second", adapters / "beta")
    assert (told.status_code, told.json()["error"]["code"]) == (403, "quota_exceeded")
    assert models(http, key) == ["tiny", "first"]
    assert server.service.adapters.registry.revisions.bytes_of("acme/") == took
    compose = {"members": [{"name": "first"}]}
    assert http.post("/v1/adapters/third/compose?wait=true", json=compose, headers=key).status_code == 403
    assert http.delete("/v1/adapters/first", headers=key).status_code == 200
    assert publish(http, key, "second", adapters / "beta").status_code == 201


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"adapter_limits": {"a": {"monthly_tokens": 1}}}, "adapter_limits.a.monthly_tokens"),
        ({"adapter_limits": {"a": {"requests_per_minute": 0}}}, "adapter_limits.a.requests_per_minute"),
        ({"adapter_limits": {f"a{n}": {} for n in range(257)}}, "adapter_limits"),
        ({"adapter_limits": []}, "adapter_limits"),
        ({"limits": {"monthly_tokens": 0}}, "limits.monthly_tokens"),
        ({"limits": {"adapter_bytes": "1"}}, "limits.adapter_bytes"),
    ],
)
def test_malformed_settings_are_refused(http: httpx.Client, fields: dict[str, object], param: str) -> None:
    told = http.post("/v1/tenants", json={"name": "x", **fields}, headers=bearer(ADMIN))
    assert (told.status_code, told.json()["error"]["param"]) == (400, param)
