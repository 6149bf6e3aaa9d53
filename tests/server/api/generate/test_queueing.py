"""Requests that wait for adapter memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from manylora.adapters.mix import parse_mix
from manylora.server.api.app import create_app
from tests.support.raw_requests import AsgiExchange
from tests.support.running_server import tiny_service
from tests.support.waiting import until


@pytest.mark.slow
async def test_a_request_with_many_prompts_waits_once(
    tmp_path: Path, model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds its adapter while others wait in line for that memory: queueing again would be a deadlock."""
    monkeypatch.setattr("manylora.server.residency.device_cache.PATIENCE_SECONDS", 0.0)
    service = tiny_service(
        model,
        tmp_path,
        adapter={name: adapters / name for name in ("alpha", "beta")},
        adapter_memory=70_000,  # either of them, not both
    )
    app, manager = create_app(service), service.adapters
    exchange = AsgiExchange({"model": "alpha", "prompt": ["a", "b", "c"], "max_tokens": 2}, "/v1/completions")
    async with app.router.lifespan_context(app), asyncio.timeout(30):
        assert (
            max(a.nbytes for a in manager.views.serving())
            < 70_000
            < sum(a.nbytes for a in manager.views.serving())
        )
        async with manager.resolve(parse_mix("beta")) as beta:
            await beta.admit()
            held = beta.share()
        request = asyncio.create_task(exchange.run(app))
        await until(lambda: manager.residency.device.lacks_room)
        behind = held.again()
        waiting = asyncio.create_task(behind.admit())
        await until(lambda: manager.residency.device.num_waiting == 2)
        held.release()
        await request
        await waiting
        behind.release()
        manager.check()
        assert manager.residency.references.total == 0
    assert len(json.loads(exchange.payload)["choices"]) == 3
