"""Requests for names that nobody has published: found in the configured sources, or refused."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import manylora.server.names.lookup as lookup_module
from manylora.adapters.errors import AdapterNotFound, ArtifactError, SourceUnreachable
from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.server.errors import QueueFull
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness
from tests.support.waiting import until


class CountingSource:
    """A source that counts what it is asked for, and can be made to wait."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()
        self.down = False
        self.gate = threading.Event()
        self.gate.set()

    def find(self, name: str) -> str | None:
        self.asked[name] += 1
        assert self.gate.wait(30)
        if self.down:
            raise SourceUnreachable("the storage doesn't answer")
        return f"s3://bucket/{name}" if (self.root / name).exists() else None

    def fetch(self, source: str, into: Path) -> str:
        name = source.rpartition("/")[2]
        self.fetched[name] += 1
        shutil.copytree(self.root / name, into, dirs_exist_ok=True)
        return f"{source}@1"


@contextmanager
def looking(
    harness: EngineHarness, root: Path, **options: Any
) -> Iterator[tuple[ManagerSetup, CountingSource]]:
    remote = CountingSource(root)
    with open_manager_setup(harness, root, room=3, find=remote.find, fetch=remote.fetch, **options) as setup:
        yield setup, remote


async def test_a_name_is_found_when_it_is_asked_for(harness: EngineHarness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (setup, remote):
        setup.write("a")
        held = await setup.hold("a")
        digest = setup.manager.views.get("a").digest
        assert held.served_model == f"a@{digest[:8]}"
        held.release()
        (await setup.hold("a")).release()
        assert remote.asked == remote.fetched == {"a": 1}
        assert setup.manager.views.status("a").source == "s3://bucket/a@1", "exactly"
        assert [facts.source for facts in await setup.manager.views.revisions("a")] == ["s3://bucket/a@1"]
        assert (await setup.manager.deletions.delete("a")).bytes_freed == setup.unit
        setup.check()


async def test_what_an_operator_names_is_looked_up_like_what_a_request_names(
    harness: EngineHarness, tmp_path: Path
) -> None:
    with looking(harness, tmp_path) as (setup, remote):
        manager = setup.manager
        for seed, name in enumerate("abc"):
            setup.write(name, seed=seed)
        assert (await manager.admin.prefetch("a")).residency.device == setup.unit
        assert (await manager.admin.pin("b")).pinned
        await manager.aliases.put("x", [("c*0.5", 1.0)])
        (await setup.hold("x")).release()
        assert remote.fetched == {"a": 1, "b": 1, "c": 1}
        for name in ("nowhere", "../a"):
            with pytest.raises(AdapterNotFound):
                await manager.admin.pin(name)
        assert "../a" not in remote.asked, "that is no name"
        setup.check()


async def test_requests_at_the_same_time_share_one_lookup(harness: EngineHarness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (setup, remote):
        setup.write("a")
        remote.gate.clear()
        crowd = [asyncio.create_task(setup.hold("a")) for _ in range(20)]
        await until(lambda: remote.asked["a"])
        remote.gate.set()
        for held in await asyncio.gather(*crowd):
            held.release()
        assert remote.asked == remote.fetched == {"a": 1}


async def test_a_lookup_holds_nobody_up_and_outlives_who_asked(
    harness: EngineHarness, tmp_path: Path
) -> None:
    with looking(harness, tmp_path) as (setup, remote):
        await setup.load("known")
        setup.write("a")
        remote.gate.clear()
        gone, stays = (asyncio.create_task(setup.hold("a")) for _ in range(2))
        await until(lambda: remote.asked["a"])
        for _ in range(5):
            (await setup.hold("known")).release()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        remote.gate.set()
        (await stays).release()
        setup.check()


async def test_what_is_not_there_is_remembered_for_a_while(harness: EngineHarness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (setup, remote):
        for _ in range(3):
            with pytest.raises(AdapterNotFound):
                await setup.hold("a")
        assert remote.asked == {"a": 1}
    with looking(harness, tmp_path, miss_seconds=0.0) as (setup, remote):
        with pytest.raises(AdapterNotFound):
            await setup.hold("a")
        setup.write("a")
        (await setup.hold("a")).release()
        assert remote.asked == {"a": 2}
        assert [r.name for r in setup.manager.views.serving()] == ["a"]


async def test_what_can_not_be_served_leaves_no_trace(harness: EngineHarness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (setup, remote):
        (setup.write("broken") / WEIGHTS_NAME).write_bytes(b"")
        for _ in range(2):
            with pytest.raises(ArtifactError):
                await setup.hold("broken")
        assert remote.fetched == {"broken": 1}
        assert setup.manager.views.page() == []
        remote.down = True
        with pytest.raises(SourceUnreachable):
            await setup.hold("a")
        assert setup.registry.names.page() == []
        assert setup.store.digests() == []


async def test_many_unknown_names_do_not_pile_up(
    harness: EngineHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_module, "MAX_RUNNING", 3)
    with looking(harness, tmp_path) as (setup, remote):
        await setup.load("known")
        remote.gate.clear()
        crowd = [asyncio.create_task(setup.hold(f"n{i}")) for i in range(3)]
        await until(lambda: len(remote.asked) == 3)
        with pytest.raises(QueueFull):
            await setup.hold("n9")
        (await setup.hold("known")).release()
        remote.gate.set()
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {AdapterNotFound}


async def test_a_mix_of_known_and_unknown_names(harness: EngineHarness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (setup, _):
        await setup.load("known")
        setup.write("a", seed=3)
        held = await setup.hold("known*0.5+a")
        assert len(held.mix.members) == 2
        held.release()
        with pytest.raises(AdapterNotFound, match="no revision"):
            await setup.hold("a@0000dead")
        setup.check()
