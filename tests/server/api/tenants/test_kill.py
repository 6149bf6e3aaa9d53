"""A server that is killed under load, over and over: usage is what clients got, but for the last second."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from manylora.adapters.registry.registry import Registry
from manylora.server.tenants.saving import SAVE_SECONDS
from tests.support.server_process import ServerProcess, server_process, small_options
from tests.support.tenants import ADMIN, bearer, chat, tenant_key

KILLS = 20
LOST_SECONDS = 2.0  # as the docs say a second, and what it takes to save beside the load
MOST = 100  # tokens that a request takes, at most


@dataclass
class Load:
    """Requests of some threads, one after the other, until the server is gone."""

    url: str
    key: str
    ended: list[tuple[float, int]] = field(default_factory=list)  # when, and its tokens

    def ask(self) -> None:
        """One thread of it."""
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while True:
                try:
                    told = http.post("/v1/chat/completions", json=chat("tiny", max_tokens=8),
                                     headers=bearer(self.key))  # fmt: skip
                except httpx.TransportError:
                    return
                if told.status_code == 429:  # servers killed seconds ago hold parts of the limits still
                    threading.Event().wait(0.1)
                    continue
                assert told.status_code == 200, told.text
                self.ended.append((time.monotonic(), told.json()["usage"]["total_tokens"]))

    def until_killed(self, process: ServerProcess, seconds: float) -> float:
        """Run for so long beside the server, then kill it; when that was."""
        threads = [threading.Thread(target=self.ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        threading.Event().wait(seconds)
        process.signal(signal.SIGKILL)
        killed = time.monotonic()
        for thread in threads:
            thread.join()
        process.process.wait(30)
        return killed


@pytest.mark.sweep  # starts a process for each time
@pytest.mark.timeout(1800)
def test_usage_survives_being_killed_under_load(tmp_path: Path, model: Path) -> None:
    options = [*small_options(model, tmp_path / "data"), "--admin-api-key", ADMIN]
    limits = {"max_concurrent_requests": 100, "monthly_tokens": 10**9}
    key, before, serving = "", 0, 0
    for _ in range(KILLS):
        with server_process(*options, step_seconds=0.002) as process:
            with httpx.Client(base_url=process.url, timeout=30) as http:
                key = key or tenant_key(http, "acme", limits=limits)
            load = Load(process.url, key)
            killed = load.until_killed(process, LOST_SECONDS + 2 * SAVE_SECONDS)
        serving += bool(load.ended)
        sure = sum(tokens for at, tokens in load.ended if at < killed - LOST_SECONDS)
        most = sum(tokens for _, tokens in load.ended) + 8 * MOST
        with Registry(f"sqlite:///{tmp_path / 'data' / 'registry.db'}") as registry:
            records = registry.usage.read(limit=10)
            told = sum(r.counts.prompt_tokens + r.counts.completion_tokens for r in records)
            assert before + sure <= told <= before + most
            snapshot = registry.tenants.snapshot()
            assert snapshot is not None
            (tenant,) = snapshot.tenants
            assert registry.taken.used_since(0, [tenant.id]) == {tenant.id: told}  # what the budget goes by
        before = told
    assert serving > KILLS // 2
