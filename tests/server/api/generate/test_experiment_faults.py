"""Odd arms: one that can't be loaded, one that is the base; clients that leave; a registry that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.errors import RegistryUnavailable, SourceMissing, StoreError
from manylora.adapters.registry.arms import Arms
from manylora.server.engine.stream import Held
from manylora.server.errors import QueueFull
from manylora.server.experiments import experiments
from manylora.server.residency.held_mix import HeldMix
from tests.support.admin_client import Admin, error_of
from tests.support.raw_requests import connect
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow

ASKED = {"model": "test", "prompt": "x", "max_tokens": 2, "n": 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    own = {"alpha": adapters / "alpha"}
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"), adapter=own)) as running:
        yield running


@pytest.fixture
def server(running: Running) -> Iterator[Running]:
    assert Admin(running).ask("PUT", "/v1/aliases/test", json={"target": "alpha"}).status_code == 200
    yield running
    Admin(running).ask("DELETE", "/v1/aliases/test")
    running.wait_until_idle()


def ask(server: Running, **more: Any) -> Any:
    return Admin(server).ask("POST", "/v1/completions", json={**ASKED, **more})


def ended(server: Running) -> tuple[int, dict[str, int]]:
    """Requests for the alias, and its answers by how they ended."""
    (arm,) = Admin(server).ask("GET", "/v1/aliases/test").json()["arms"]
    reasons = {reason: found["count"] for reason, found in arm["finish_reasons"].items() if found["count"]}
    return arm["requests"], reasons


def admit_by(monkeypatch: pytest.MonkeyPatch, admit: Callable[..., Awaitable[None]]) -> None:
    """Have every mix wait for its adapters, by ``admit``."""
    monkeypatch.setattr(HeldMix, "try_admit", lambda *_: False)
    monkeypatch.setattr(HeldMix, "admit", admit)


def test_an_adapter_that_can_not_be_loaded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> Any:
        raise SourceMissing("its files are gone")

    admit_by(monkeypatch, gone)
    assert ask(server).status_code == 503
    assert ask(server, stream=True).status_code == 503
    assert ended(server) == (2, {"error": 4})


def test_files_that_can_not_be_read(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> Any:
        raise SourceMissing("its files are gone")

    monkeypatch.setattr(server.service.conventions, "unread", set)  # as if their texts had to be read
    monkeypatch.setattr(server.service.adapters.refetcher, "ensure_on_disk", gone)
    assert error_of(ask(server))[:2] == (503, "adapter_unavailable")
    compared = Admin(server).ask("POST", "/v1/compare", json={"targets": ["tiny", "test"], "prompt": "x"})
    assert compared.status_code == 503
    assert ended(server) == (1, {"error": 1})


def test_a_client_that_leaves_before_the_adapter_is_there(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, left = asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> Any:
        waits.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    admit_by(monkeypatch, never)
    with closing(connect(server, "/v1/completions", ASKED)):
        server.call(asyncio.wait_for(waits.wait(), 30))
    server.call(asyncio.wait_for(left.wait(), 30))
    server.wait_until_idle()
    assert ended(server) == (1, {"abort": 2})


def test_a_queue_that_is_full_is_not_the_arms_fault(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, held: Held, *__: object) -> Any:
        held.release()  # as whatever keeps the engine from taking it
        raise QueueFull("too many", 1.0)

    monkeypatch.setattr(server.service.engine, "submit", full)
    assert ask(server).status_code == 429
    assert ended(server) == (0, {})


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (StoreError("the disk is full"), (507, "store_failed")),
        (RegistryUnavailable("connection refused"), (503, "registry_unavailable")),
    ],
)
def test_what_the_registry_refused_is_told_again(
    error: StoreError, answer: tuple[int, str], server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    assert ask(server).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(Arms, "add", refuse)
        assert error_of(Admin(server).ask("GET", "/v1/aliases/test"))[:2] == answer
        assert ask(server).status_code == 200
    requests, reasons = ended(server)
    assert (requests, sum(reasons.values())) == (2, 4)
    assert ended(server) == (requests, reasons)


def test_only_so_many_answers_are_remembered_for_so_long(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(server: Running, response_id: str) -> int:
        body = {"response_id": response_id, "score": 1}
        return Admin(server).ask("POST", "/v1/feedback", json=body).status_code

    monkeypatch.setattr(experiments, "REMEMBERED", 2)
    with serving(tiny_service(model, tmp_path)) as server:
        ids = [ask(server, model="tiny").json()["id"] for _ in range(3)]
        assert [score(server, one) for one in ids] == [404, 200, 200]
    monkeypatch.setattr(experiments, "REMEMBERED_SECONDS", 0.0)
    with serving(tiny_service(model, tmp_path)) as server:
        assert score(server, ask(server, model="tiny").json()["id"]) == 404


def test_the_base_model_is_an_arm_under_its_name(server: Running) -> None:
    admin = Admin(server)
    assert admin.ask("PUT", "/v1/aliases/test", json={"target": "tiny"}).status_code == 200
    scored = admin.ask("POST", "/v1/feedback", json={"response_id": ask(server).json()["id"], "score": 1})
    assert scored.json()["arm"] == "tiny"
    (arm,) = admin.ask("GET", "/v1/aliases/test").json()["arms"]
    assert (arm["target"], arm["answers"], arm["score"]["count"]) == ("tiny", 2, 1)
    assert b'manylora_arm_scores{alias="test",arm="tiny"} 1.0' in server.service.metrics.exposition()[0]
