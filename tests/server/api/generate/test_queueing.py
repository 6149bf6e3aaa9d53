"""Requests that wait for adapter memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from manylora.adapters.mix import parse_mix
from manylora.server.api.app import create_app
from tests.server.api.generate.test_streaming import Exchange
from tests.support.running_server import tiny_service


async def test_a_request_with_many_prompts_waits_once(
    tmp_path: Path, model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds its adapter while others wait in line for that memory: queueing again would be a deadlock."""
    monkeypatch.setattr("manylora.server.residency.device_cache._PATIENCE", 0.0)
    service = tiny_service(
        model,
        tmp_path,
        adapter={name: adapters / name for name in ("alpha", "beta")},
        adapter_memory=70_000,  # either of them, not both
    )
    app, manager = create_app(service), service.adapters
    exchange = Exchange({"model": "alpha", "prompt": ["a", "b", "c"], "max_tokens": 2}, "/v1/completions")
    async with app.router.lifespan_context(app), asyncio.timeout(30):
        assert max(a.nbytes for a in manager.list()) < 70_000 < sum(a.nbytes for a in manager.list())
        held = await manager.lease(await manager.resolve(parse_mix("beta")))
        request = asyncio.create_task(app(exchange.scope, exchange.receive, exchange.send))
        while not manager._placement._line:
            await asyncio.sleep(0)
        while manager._placement._line[0].since is None:  # it is read, and there is no room
            await asyncio.sleep(0)
        behind = asyncio.create_task(manager.lease(await manager.resolve(parse_mix("beta"))))
        await asyncio.sleep(0)
        held.release()
        await request
        (await behind).release()
        manager.check()
        assert manager.num_references == 0
    assert len(json.loads(exchange.payload)["choices"]) == 3
