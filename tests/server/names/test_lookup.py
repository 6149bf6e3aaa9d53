"""Requests for names that nobody has published: found in the configured sources, or refused."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import manylora.server.names.lookup as lookup_module
from manylora.adapters.errors import AdapterNotFound, ArtifactError, SourceUnreachable
from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.server.errors import QueueFull
from tests.support.adapter_manager import Shop, open_shop
from tests.support.engine_harness import Harness
from tests.support.waiting import settle, until


class Shelves:
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
def looking(harness: Harness, root: Path) -> Iterator[tuple[Shop, Shelves]]:
    shelves = Shelves(root)
    with open_shop(harness, root, room=3, find=shelves.find, fetch=shelves.fetch) as shop:
        yield shop, shelves


async def test_a_name_is_found_when_it_is_asked_for(harness: Harness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (shop, shelves):
        shop.write("a")
        lease = await shop.lease("a")
        digest = shop.manager.get("a").digest
        assert lease.served_model == f"a@{digest[:8]}"
        lease.release()
        (await shop.lease("a")).release()
        assert shelves.asked == shelves.fetched == {"a": 1}
        assert shop.manager.status("a").source == "s3://bucket/a@1", "exactly"
        assert [facts.source for facts in await shop.manager.revisions("a")] == ["s3://bucket/a@1"]
        assert await shop.manager.unload("a") == shop.unit
        shop.check()


async def test_what_an_operator_names_is_looked_up_like_what_a_request_names(
    harness: Harness, tmp_path: Path
) -> None:
    with looking(harness, tmp_path) as (shop, shelves):
        manager = shop.manager
        for seed, name in enumerate("abc"):
            shop.write(name, seed=seed)
        assert (await manager.prefetch("a")).residency.device == shop.unit
        assert (await manager.pin("b")).pinned
        await manager.put_alias("x", [("c*0.5", 1.0)])
        (await shop.lease("x")).release()
        assert shelves.fetched == {"a": 1, "b": 1, "c": 1}
        for name in ("nowhere", "../a"):
            with pytest.raises(AdapterNotFound):
                await manager.pin(name)
        assert "../a" not in shelves.asked, "that is no name"
        shop.check()


async def test_requests_at_the_same_time_share_one_lookup(harness: Harness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (shop, shelves):
        shop.write("a")
        shelves.gate.clear()
        crowd = [asyncio.create_task(shop.lease("a")) for _ in range(20)]
        await until(lambda: shelves.asked["a"])
        shelves.gate.set()
        for lease in await asyncio.gather(*crowd):
            lease.release()
        assert shelves.asked == shelves.fetched == {"a": 1}


async def test_a_lookup_holds_nobody_up_and_outlives_who_asked(harness: Harness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (shop, shelves):
        await shop.load("known")
        shop.write("a")
        shelves.gate.clear()
        gone, stays = (asyncio.create_task(shop.lease("a")) for _ in range(2))
        await until(lambda: shelves.asked["a"])
        for _ in range(5):
            (await shop.lease("known")).release()
        gone.cancel()
        await settle()
        assert gone.cancelled()
        shelves.gate.set()
        (await stays).release()
        shop.check()


async def test_what_is_not_there_is_remembered_for_a_while(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(lookup_module, "monotonic", lambda: now[0])
    with looking(harness, tmp_path) as (shop, shelves):
        for _ in range(3):
            with pytest.raises(AdapterNotFound):
                await shop.lease("a")
        assert shelves.asked == {"a": 1}
        shop.write("a")
        now[0] += 6.0
        (await shop.lease("a")).release()
        assert shelves.asked == {"a": 2}
        assert [r.name for r in shop.manager.list()] == ["a"]


async def test_what_can_not_be_served_leaves_no_trace(harness: Harness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (shop, shelves):
        (shop.write("broken") / WEIGHTS_NAME).write_bytes(b"")
        for _ in range(2):
            with pytest.raises(ArtifactError):
                await shop.lease("broken")
        assert shelves.fetched == {"broken": 1}
        assert shop.manager.page() == []
        shelves.down = True
        with pytest.raises(SourceUnreachable):
            await shop.lease("a")
        assert shop.registry.names.page() == []
        assert shop.store.digests() == []


async def test_many_unknown_names_do_not_pile_up(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_module, "_MAX_RUNNING", 3)
    with looking(harness, tmp_path) as (shop, shelves):
        await shop.load("known")
        shelves.gate.clear()
        crowd = [asyncio.create_task(shop.lease(f"n{i}")) for i in range(3)]
        await until(lambda: len(shelves.asked) == 3)
        with pytest.raises(QueueFull):
            await shop.lease("n9")
        (await shop.lease("known")).release()
        shelves.gate.set()
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {AdapterNotFound}


async def test_a_mix_of_known_and_unknown_names(harness: Harness, tmp_path: Path) -> None:
    with looking(harness, tmp_path) as (shop, _):
        await shop.load("known")
        shop.write("a", seed=3)
        lease = await shop.lease("known*0.5+a")
        assert len(lease.mix.members) == 2
        lease.release()
        with pytest.raises(AdapterNotFound, match="no revision"):
            await shop.lease("a@0000dead")
        shop.check()
