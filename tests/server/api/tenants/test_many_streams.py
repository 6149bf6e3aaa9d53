"""Two hundred streams at a time against a limit of twenty: never more run, and none is lost."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import httpx
import pytest

from tests.support.running_server import Running
from tests.support.tenants import bearer, chat, tenant_key

STREAMS, LIMIT = 200, 20


@pytest.mark.sweep
@pytest.mark.slow
def test_never_more_run_than_may(server: Running, http: httpx.Client) -> None:
    key = tenant_key(http, "acme", ["alpha"], limits={"max_concurrent_requests": LIMIT})
    body = chat("alpha", max_tokens=6, ignore_eos=True, stream=True)
    (tenant,) = server.service.tenants.all()
    meter, seen, done = server.service.tenants.meters.of(tenant.id), Counter[str](), threading.Event()
    open_at_a_time: list[int] = []

    async def watch() -> None:
        while not done.is_set():
            open_at_a_time.append(max(meter.running, server.service.engine.num_open))
            await asyncio.sleep(0.001)

    async def ask(client: httpx.AsyncClient) -> None:
        while seen["whole"] < STREAMS:
            told = await client.post("/v1/chat/completions", json=body, headers=bearer(key))
            seen[str(told.status_code)] += 1
            if told.status_code == 200:
                seen["whole"] += told.text.rstrip().endswith("data: [DONE]")
                return
            assert told.status_code == 429
            assert int(told.headers["retry-after"]) == 1
            await asyncio.sleep(0.2)

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, verify=False) as client:
            await asyncio.gather(*(ask(client) for _ in range(STREAMS)))

    assert server.server.loop is not None
    watching = asyncio.run_coroutine_threadsafe(watch(), server.server.loop)
    try:
        asyncio.run(all_of_them())
    finally:
        done.set()
        watching.result(30)
    assert seen["200"] == seen["whole"] == STREAMS
    assert seen["429"] > 0
    assert LIMIT // 2 < max(open_at_a_time) <= LIMIT
    server.wait_until_idle()
    assert meter.running == 0
