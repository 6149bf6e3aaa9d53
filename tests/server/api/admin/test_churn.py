"""Adapters published, replaced, evicted, rolled back and deleted under streaming load, over HTTP.

``MANYLORA_CHURN_SECONDS=120`` makes it a long run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic

import httpx
import pytest

from manylora.adapters.errors import AdapterInUse, AdapterNotFound
from manylora.server.adapter_manager import AdapterManager
from manylora.server.names.status import Filter
from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("MANYLORA_CHURN_SECONDS", "4"))
CLIENTS = 16
STABLE = ("s0", "s1", "s2", "s3")  # never deleted: no request for them may fail
FLEETING = ("f0", "f1")  # come and go: a request for them may be told that there is no such adapter
CHANGES = ("publish", "evict", "roll back", "delete", "pin")
PROMPTS = ("Hello", "The quick brown fox", "1 2 3 4 5 6 7 8")


class Churn:
    """Clients and an operator on one server, and what every revision has to answer."""

    def __init__(self, server: Running, variants: list[Path], seed: int) -> None:
        self.server = server
        self.manager: AdapterManager = server.service.adapters
        self.variants = variants
        self.expected: dict[tuple[str, str], str] = {}  # (revision, prompt) -> text
        self.outcomes: Counter[str] = Counter()
        self.rng = random.Random(seed)
        self.until = 0.0

    async def learn(self, http: httpx.AsyncClient) -> None:
        """Ask each variant everything while nothing else happens."""
        for path in self.variants:
            self.server.call(self.manager.admin.load("probe", path, replace=True))
            for prompt in PROMPTS:
                revision, text = await self.ask(http, "probe", prompt)
                self.expected[revision, prompt] = text
        self.server.call(self.manager.deletions.delete("probe"))
        assert len(set(self.expected.values())) > len(self.variants)

    async def ask(self, http: httpx.AsyncClient, name: str, prompt: str) -> tuple[str, str]:
        """Stream one answer: which revision gave it, and its text. ("", "") if there is no such name."""
        body = {"model": name, "prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": True}
        text, revision, ended = "", "", False
        async with http.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as response:
            if response.status_code == 404:
                return "", ""
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                ended |= line == "data: [DONE]"
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    text += chunk["choices"][0]["text"] if chunk["choices"] else ""
                    revision = chunk["model"].partition("@")[2]
        assert ended
        return revision, text

    async def client(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        while self.goes_on:
            name, prompt = rng.choice([*STABLE, *STABLE, *FLEETING]), rng.choice(PROMPTS)
            revision, text = await self.ask(http, name, prompt)
            if not revision:
                assert name in FLEETING, f"{name} was never deleted"
                self.outcomes["gone"] += 1
                continue
            assert text == self.expected[revision, prompt], f"{name}@{revision} answered otherwise"
            self.outcomes["answered"] += 1

    async def operator(self, rng: random.Random) -> None:
        while self.goes_on:
            what = rng.choice(CHANGES)
            name = rng.choice([*STABLE, *FLEETING] if what != "delete" else FLEETING)
            with suppress(AdapterInUse, AdapterNotFound):
                await asyncio.wrap_future(
                    asyncio.run_coroutine_threadsafe(
                        self.change(what, name, rng.choice(self.variants)), self.loop
                    )
                )
                self.outcomes[what] += 1

    @property
    def goes_on(self) -> bool:
        """Until the time is over and everything has been done at least once, on a slow machine later."""
        left = self.until - monotonic()
        return left > 0 or (left > -60 and not all(self.outcomes[what] for what in CHANGES))

    async def change(self, what: str, name: str, path: Path) -> None:
        if what == "publish":
            await self.manager.admin.load(name, path, replace=True)
        elif what == "evict":
            idle = [s.name for s in self.manager.views.page(Filter(resident=True)) if not s.references]
            await self.manager.admin.evict(idle[0] if idle else name)
        elif what == "roll back":
            await self.manager.admin.rollback(name)
        elif what == "delete":
            await self.manager.deletions.delete(name)
        else:
            await self.manager.admin.pin(name)
            await self.manager.admin.unpin(name)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self.server.server.loop is not None
        return self.server.server.loop

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=CLIENTS + 4)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=60, limits=limits) as http:
            await self.learn(http)
            for name, path in zip((*STABLE, *FLEETING), self.variants, strict=False):
                self.server.call(self.manager.admin.load(name, path))
            self.until = monotonic() + SECONDS
            seeds = [random.Random(self.rng.random()) for _ in range(CLIENTS + 2)]
            clients = [self.client(http, rng) for rng in seeds[2:]]
            await asyncio.gather(*clients, *(self.operator(rng) for rng in seeds[:2]))


@pytest.mark.sweep
@pytest.mark.parametrize("seed", [0])
async def test_every_stream_is_its_revisions_whatever_happens(
    tmp_path: Path, model: Path, adapters: Path, seed: int
) -> None:
    variants = [
        write_adapter(tmp_path / f"v{i}", model, rank=8, seed=100 + i, targets="all-linear", scale=0.2)
        for i in range(6)
    ]
    # Room for about three of the six names, and for as many again in host memory.
    service = tiny_service(model, tmp_path / "data", adapter_memory=200_000, adapter_cache_memory=200_000)
    with serving(service) as server:
        churn = Churn(server, variants, seed)
        await churn.run()
        assert churn.outcomes["answered"] > CLIENTS
        assert all(churn.outcomes[what] for what in CHANGES), churn.outcomes
        server.wait_until_idle()
        for adapter in service.adapters.views.serving():
            server.call(service.adapters.deletions.delete(adapter.name))
        server.wait_until_idle()
        assert service.store.digests() == []
        assert service.adapters.views.page() == []
        sample = service.metrics.registry.get_sample_value
        assert sample("manylora_adapters_resident_bytes") == 0
        assert sample("manylora_adapters_memory_bytes") == 0
        assert sample("manylora_tokens_after_abort_total") == 0
