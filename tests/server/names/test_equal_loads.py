"""Loads of one name that meet: equal ones join, others come in the order in which they began."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from manylora.adapters.errors import AdapterExists
from manylora.server.names.admin.publishing import Publication
from tests.support.adapter_manager import ManagerSetup


async def test_equal_loads_at_once_all_succeed(setup: ManagerSetup) -> None:
    path = setup.write("content")
    found = await asyncio.gather(*(setup.manager.admin.load("a", path) for _ in range(20)))
    assert {registered.digest for registered in found} == {setup.manager.views.get("a").digest}
    assert setup.store.digests() == [found[0].digest]
    assert len(setup.manager.views.status("a").history) == 1
    late = await setup.manager.admin.load("a", path)  # it serves by now
    assert late.digest == found[0].digest
    with pytest.raises(AdapterExists):
        await setup.manager.admin.load("a", setup.write("other", seed=1))


async def test_equal_content_from_elsewhere_joins(setup: ManagerSetup) -> None:
    path = setup.write("content")
    shutil.copytree(path, setup.root / "copy")
    load = setup.manager.admin.load
    first, second = await asyncio.gather(load("a", path), load("a", setup.root / "copy"))
    assert first.digest == second.digest
    assert setup.manager.views.status("a").source == str(path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_loads_that_replace_come_in_order(setup: ManagerSetup, seed: int) -> None:
    rng = random.Random(seed)
    paths = [setup.write(f"content{n}", seed=n, rank=rng.randint(1, 4)) for n in range(3)]
    order = [rng.choice(paths) for _ in range(12)]
    load = setup.manager.admin.load
    found = await asyncio.gather(*(load("a", path, replace=True) for path in order))
    digests = {path: registered.digest for path, registered in zip(order, found, strict=True)}
    status = setup.manager.views.status("a")
    assert status.digest == digests[order[-1]]
    latest = dict.fromkeys(digests[path] for path in reversed(order))
    assert list(status.history) == list(latest)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_the_first_content_wins_where_nothing_may_be_replaced(setup: ManagerSetup, seed: int) -> None:
    rng = random.Random(seed)
    paths = [setup.write(f"content{n}", seed=n, rank=rng.randint(1, 4)) for n in range(3)]
    order = [rng.choice(paths) for _ in range(12)]
    load = setup.manager.admin.load
    found = await asyncio.gather(*(load("a", path) for path in order), return_exceptions=True)
    for path, result in zip(order, found, strict=True):
        assert isinstance(result, AdapterExists) == (path != order[0])
    assert len(setup.manager.views.status("a").history) == 1
    assert len(setup.store.digests()) == 1


async def begin(setup: ManagerSetup, path: Path) -> Publication:
    def fetch(into: Path) -> None:
        shutil.copytree(path, into, dirs_exist_ok=True)

    return await setup.manager.admin.begin_publish("a", fetch, source=str(path), replace=False)


async def test_publications_that_may_not_replace_join(setup: ManagerSetup) -> None:
    one, other = setup.write("one", seed=1), setup.write("other", seed=2)
    begun = [await begin(setup, path) for path in (one, other, one, one)]
    found = await asyncio.gather(*(each.done() for each in begun), return_exceptions=True)
    assert [isinstance(result, AdapterExists) for result in found] == [False, True, False, False]
    assert [each.made_name for each in (begun[0], begun[2], begun[3])] == [True, False, False]
    late = await begin(setup, one)  # its request came before the first had ended
    await late.done()
    assert len(setup.manager.views.status("a").history) == 1
