"""Two servers on one registry and one directory: what happens through one is so on the other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.errors import AdapterNotFound
from manylora.server.names.status import Filter
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness
from tests.support.paths import ROOT
from tests.support.waiting import until

SECOND = 1.0  # within which the other server knows
SLACK = 1.0  # for a machine that does other things as well


class Other:
    """The manager in the other process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), 60))

    async def do(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        return await self.answer()


@asynccontextmanager
async def other_server(model: Path, root: Path, url: str) -> AsyncIterator[Other]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.support.second_server", str(model), str(root), url)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    other = Other(process)
    assert await other.answer() == "ready"
    yield other
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.fixture(scope="module")
def harness(tiny_llama: Path) -> EngineHarness:
    return EngineHarness(tiny_llama)


@pytest.fixture
def setup(harness: EngineHarness, tmp_path: Path, url: str) -> Iterator[ManagerSetup]:
    with open_manager_setup(harness, tmp_path, room=2, url=url) as made:
        yield made


async def soon(condition: Any) -> None:
    await asyncio.wait_for(until(condition), SECOND + SLACK)


async def is_refused(setup: ManagerSetup, name: str) -> bool:
    try:
        (await setup.hold(name)).release()
    except AdapterNotFound:
        return True
    return False


async def test_what_one_does_is_so_on_the_other(
    setup: ManagerSetup, tiny_llama: Path, tmp_path: Path, url: str
) -> None:
    await setup.manager.start()
    async with other_server(tiny_llama, tmp_path, url) as other:
        first = await other.do("load", "a", setup.write("a", seed=1))
        held = await setup.hold("a")  # at once: who misses a name asks the registry
        assert held.served_model == f"a@{first[:8]}"

        second = await other.do("load", "a", setup.write("a2", seed=2))
        await soon(lambda: setup.manager.views.get("a").digest == second)
        assert held.mix.members[0][0].digest == first
        assert await other.do("rollback", "a") == first
        await soon(lambda: setup.manager.views.get("a").digest == first)

        await setup.manager.admin.load("b", setup.write("b", seed=3))
        assert await other.do("ask", "b") == f"b@{setup.manager.views.get('b').digest[:8]}"
        assert await other.do("alias", "x", "b") == "x"
        (await setup.hold("x")).release()
        await setup.manager.aliases.delete("x")
        await setup.manager.admin.load("c", tmp_path / "b")
        assert await other.do("delete", "c"), "what is done to a name is done to it as it is now"

        assert await other.do("delete", "a"), "its own requests are none"
        await soon(lambda: not [r for r in setup.manager.views.serving() if r.name == "a"])
        assert await is_refused(setup, "a")
        held.release()  # its pages stayed as long as it ran, wherever the files went
        await soon(lambda: setup.pool.used_bytes <= setup.unit)
        assert setup.store.digests() == [setup.manager.views.get("b").digest]

        await setup.manager.deletions.delete("b")
        assert await other.do("ask", "b") == "AdapterNotFound" or await _gone(other, "b")
    setup.check()
    await setup.manager.close()


async def _gone(other: Other, name: str) -> bool:
    async with asyncio.timeout(SECOND + SLACK):
        while await other.do("ask", name) != "AdapterNotFound":
            await asyncio.sleep(0.01)
    return True


async def test_a_pin_through_one_is_a_pin_on_the_other(
    setup: ManagerSetup, harness: EngineHarness, url: str
) -> None:
    """Two managers in one process, on one database and one directory."""
    with open_manager_setup(harness, setup.root, room=2, url=url) as twin:
        await asyncio.gather(setup.manager.start(), twin.manager.start())
        await setup.load("a", "b", "c")
        await setup.manager.admin.pin("a")
        await soon(lambda: twin.manager.views.page(Filter(resident=True)))
        assert twin.manager.views.status("a").pinned
        await twin.manager.admin.unpin("a")
        await soon(lambda: not setup.manager.views.status("a").pinned)
        for name in "abc":
            await twin.manager.deletions.delete(name)
        await soon(lambda: not setup.manager.views.serving())
        await soon(lambda: not setup.pool.used_bytes)
        assert setup.store.digests() == []
        await asyncio.gather(setup.manager.close(), twin.manager.close())
