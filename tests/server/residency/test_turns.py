"""Room on the device is given in the order of the service that tenants and their adapters got."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

import manylora.server.residency.device_cache as device_cache_module
from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.order.turns import Asker
from manylora.server.engine.scheduler import Scheduler
from manylora.server.engine.sequence import ResolvedMix, Sequence
from manylora.server.residency.revision import Revision
from tests.support.scheduling import scheduler, step
from tests.support.sequences import make_sequence
from tests.support.small_device_cache import SmallDeviceCache, waiting_for

ROOM = 4  # adapters on the device
MOST = 12  # tokens of a prompt, and of an answer


class Requests:
    """Requests that wait for their adapter and then run on a scheduler that only pretends to compute."""

    def __init__(self, made: Scheduler) -> None:
        self.made = made
        self.cache = SmallDeviceCache(ROOM, turns=made.turns)
        self.service: Counter[str] = Counter()  # by client
        self._revisions: dict[str, Revision] = {}
        self._random = random.Random(0)
        self._running: dict[Sequence, tuple[int, asyncio.Event]] = {}

    async def ask(self, client: Client, adapter: str, priority: int = 0) -> None:
        """One request from its model to its end."""
        if adapter not in self._revisions:
            self._revisions[adapter] = self.cache.revision(adapter)
        members = [self._revisions[adapter]]
        await self.cache.device.acquire(members, Asker(client, adapter, priority))
        lengths = [self._random.randint(1, MOST) for _ in range(2)]
        sequence = make_sequence(
            range(lengths[0]), max_tokens=lengths[1], client=client, mix=ResolvedMix(label=adapter)
        )
        if self.made.turns is not None:
            self.made.turns.submitted(client, lengths[0])
        ended = asyncio.Event()
        self._running[sequence] = (0, ended)
        self.made.add(sequence)
        await ended.wait()
        self.cache.device.release(members)

    async def flood(self, client: Client, adapters: int, at_a_time: int) -> None:
        """Always have so many requests there, for one of many adapters after the other."""

        async def one(index: int) -> None:
            for turn in range(10**9):
                await self.ask(client, f"{client.name}-{(index + turn * at_a_time) % adapters}")

        await asyncio.gather(*(one(index) for index in range(at_a_time)))

    async def run(self, steps: int) -> None:
        """Run so many steps of the engine, between which the event loop has its turns."""
        for _ in range(steps):
            waiting = {s for s in self._running if s.first_scheduled is None}
            step(self.made)
            for sequence, (paid, ended) in tuple(self._running.items()):
                if sequence in waiting and sequence.first_scheduled is not None:
                    self.service[sequence.client.name] += sequence.num_prompt_tokens
                now = sequence.num_output_tokens
                self.service[sequence.client.name] += 2 * (now - paid)
                self._running[sequence] = (now, ended)
                if sequence.finish_reason is not None:
                    del self._running[sequence]
                    ended.set()
            await self._settle()

    async def _settle(self) -> None:
        """Let everybody get what there is room for: a step takes longer than a read."""
        for _ in range(10):
            await asyncio.sleep(0)
        until = monotonic() + 0.005
        while self.cache.device.num_waiting and self._free() and monotonic() < until:
            await asyncio.sleep(0)

    def _free(self) -> int:
        return ROOM - sum(revision.admitted > 0 for revision in self._revisions.values())


@contextmanager
def ended(*tasks: asyncio.Task[None]) -> Iterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first in the queue lets nobody pass who does not go before it."""
    monkeypatch.setattr(device_cache_module, "PATIENCE_SECONDS", 0.0)


@pytest.mark.parametrize("fair", [True, False])
async def test_many_cold_adapters_of_a_tenant_do_not_starve_the_warm_one_of_another(fair: bool) -> None:
    requests = Requests(scheduler(seqs=8, tokens=64, fair=fair))
    many, one = Client("many"), Client("one")
    await_warm = asyncio.create_task(requests.ask(one, "warm"))
    await requests.run(MOST + 40)
    await await_warm
    flood = asyncio.create_task(requests.flood(many, 500, 500))
    took = []
    with ended(flood):
        await requests.run(30)
        for _ in range(6 if fair else 1):
            task = asyncio.create_task(requests.ask(one, "warm"))
            steps = 0
            while not task.done() and steps < 150:
                await requests.run(1)
                steps += 1
            took.append(steps)
            task.cancel()
    # Its own steps, and those until one of the four places is free, and what reading takes.
    assert max(took) < 75 if fair else max(took) == 150


async def test_two_tenants_that_both_wait_for_room_share_it_by_weight() -> None:
    requests = Requests(scheduler(seqs=8, tokens=64))
    clients = [Client("light", 1.0), Client("heavy", 3.0)]
    floods = [
        asyncio.create_task(requests.flood(client, 40, count))
        for client, count in zip(clients, (60, 6), strict=True)
    ]
    with ended(*floods):
        await requests.run(100)
        before = Counter(requests.service)
        await requests.run(400)
    got = [(requests.service[c.name] - before[c.name]) / c.weight for c in clients]
    # What the four places hold and the engine has begun, of prompts and answers, and the paper's bound.
    assert abs(got[0] - got[1]) <= 2 * (2 * ROOM * MOST + ROOM * MOST)
    assert min(got) > 300


async def test_the_adapters_of_one_tenant_are_brought_in_in_turn() -> None:
    """One that has had nothing yet goes before those that have, however many requests these have queued."""
    made = scheduler(seqs=8, tokens=64)
    requests = Requests(made)
    tenant = Client("tenant")
    flood = asyncio.create_task(requests.flood(tenant, 5, 20))  # five adapters take turns in four places
    with ended(flood):
        await requests.run(100)
        task = asyncio.create_task(requests.ask(tenant, "other"))
        steps = 0
        while not task.done():
            await requests.run(1)
            steps += 1
            assert steps < 150


async def test_the_order_is_that_of_arrival_without_tenants_and_of_priority_within_one() -> None:
    made = scheduler()
    cache = SmallDeviceCache(1, turns=made.turns)
    held, *others = (cache.revision(name) for name in "abcd")
    await cache.device.acquire([held])
    tasks = [await waiting_for(cache, one) for one in others]
    assert made.turns is not None
    assert made.turns.watched == frozenset()  # the engine has nothing to tell
    cache.device.release([held])
    for one, task in zip(others, tasks, strict=True):
        await task
        cache.device.release([one])

    tenant = Client("tenant")
    await cache.device.acquire([held])
    tasks = [
        await waiting_for(cache, one, asker=Asker(tenant, one.digest, priority))
        for one, priority in zip(others, (0, 5, -1), strict=True)
    ]
    assert made.turns.watched == {"tenant"}
    cache.device.release([held])
    for index in (2, 0, 1):
        await tasks[index]
        assert [task.done() for task in tasks].count(True) == 1 + (2, 0, 1).index(index)
        cache.device.release([others[index]])
    assert made.turns.watched == frozenset()


async def test_who_leaves_the_queue_lets_the_next_have_its_turn() -> None:
    made = scheduler()
    cache = SmallDeviceCache(1, turns=made.turns)
    a, b, c = (cache.revision(name) for name in "abc")
    await cache.device.acquire([a], Asker(EVERYBODY))
    first = await waiting_for(cache, b, asker=Asker(Client("one"), "b"))
    second = await waiting_for(cache, c, asker=Asker(Client("two"), "c"))
    first.cancel()
    cache.device.release([a])
    await asyncio.wait_for(second, 10)
    assert not cache.device.num_waiting
    cache.device.release([c])
    cache.device.check()
