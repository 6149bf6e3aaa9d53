"""Limits that several servers share: together they never take more, and none starves beside idle ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.errors import RegistryUnavailable
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tenants import taken as taken_module
from manylora.adapters.registry.tenants.records import TenantLimits, TenantRecord, TenantSettings
from manylora.adapters.registry.tenants.taken import Asked, Part, ceiling_of
from manylora.server.errors import RateLimited, RequestError
from manylora.server.tenants import meters as module
from manylora.server.tenants.limit_headers import headers_of
from manylora.server.tenants.limits import Cost
from manylora.server.tenants.meters import Meters

COST = Cost(1, 1)


@dataclass
class Server:
    """One of several, as far as it matters to what they are granted."""

    total: int = 0
    ceiling: int = 0


steps = st.tuples(
    st.sampled_from(["take", "give", "ask", "idle"]), st.integers(0, 3), st.integers(0, 30), st.integers(0, 9)
)


@given(st.integers(1, 50), st.lists(steps, max_size=60))
def test_ceilings_never_add_up_to_more_than_the_limit(
    limit: int, moves: list[tuple[str, int, int, int]]
) -> None:
    servers = [Server() for _ in range(4)]
    for kind, which, amount, more in moves:
        server = servers[which]
        if kind == "take":
            server.total = min(server.ceiling, server.total + amount)
        elif kind == "give":
            server.total = max(0, server.total - amount)
        else:
            others = [Part(other.total, other.ceiling) for other in servers if other is not server]
            floor = min(server.ceiling, server.total + more)
            asked = Asked(limit, server.total, floor, amount, idle=kind == "idle")
            server.ceiling = ceiling_of(asked, others)
            assert server.ceiling >= floor  # what it took while it asked stays right
        assert sum(each.ceiling for each in servers) <= limit
        assert all(each.total <= each.ceiling for each in servers)


def test_what_is_left_is_divided_and_given_where_it_is_wanted() -> None:
    assert ceiling_of(Asked(100, 0, 0), []) == 100
    assert ceiling_of(Asked(100, 10, 10), [Part(10, 20)]) == 50
    assert ceiling_of(Asked(100, 10, 10, wanted=60), [Part(10, 20)]) == 70
    assert ceiling_of(Asked(100, 10, 10, wanted=90), [Part(10, 20)]) == 80
    assert ceiling_of(Asked(100, 10, 10), [Part(90, 90)]) == 10
    assert ceiling_of(Asked(100, 10, 10, idle=True), []) == 10
    assert ceiling_of(Asked(10, 30, 30), []) == 30  # the limit was made smaller


@asynccontextmanager
async def servers(registry: Registry, count: int) -> AsyncIterator[list[Meters]]:
    """So many servers of one registry, which know of each other."""
    found = [Meters(registry.taken, lambda: True) for _ in range(count)]
    for meters in found:
        meters.start()
    try:
        yield found
    finally:
        for meters in found:
            await meters.close()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(module, "SHARE_SECONDS", 0.05)
    return Registry(f"sqlite:///{tmp_path}/registry.db")


def tenant_of(registry: Registry, **limits: int) -> TenantRecord:
    return registry.tenants.add("acme", TenantSettings(limits=TenantLimits(**limits)))


@pytest.mark.parametrize("count", [1, 3])
def test_200_streams_against_a_limit_of_20(registry: Registry, count: int) -> None:
    """All come at once, over and over, to any of the servers; never do more run, and many do."""
    tenant = tenant_of(registry, max_concurrent_requests=20)
    running, most, ended = 0, 0, 0

    async def stream(found: list[Meters], dice: random.Random) -> None:
        nonlocal running, most, ended
        while True:
            try:
                (reservation,) = await dice.choice(found).reserve(tenant, (), COST)
            except RateLimited:
                await asyncio.sleep(0.02)
                continue
            running += 1
            most = max(most, running)
            await asyncio.sleep(dice.uniform(0.05, 0.1))
            running -= 1
            ended += 1
            reservation.settle(COST)
            return

    async def run() -> None:
        async with servers(registry, count) as found:
            await asyncio.gather(*(stream(found, random.Random(n)) for n in range(200)))

    asyncio.run(run())
    assert ended == 200
    assert 10 < most <= 20


def test_tokens_of_a_minute_are_shared(registry: Registry) -> None:
    tenant = tenant_of(registry, tokens_per_minute=100, requests_per_minute=1000)

    async def run() -> None:
        async with servers(registry, 2) as (first, second):
            taken, refusals = 0, 0
            while taken < 100 and refusals < 100:
                which = first if taken < 50 else second
                try:
                    await which.reserve(tenant, (), Cost(1, 0))
                    taken, refusals = taken + 1, 0
                except RateLimited:  # the other has not seen yet that this one wants some
                    refusals += 1
            assert taken == 100
            await asyncio.sleep(0.3)
            for meters in (first, second):
                with pytest.raises(RateLimited, match="100 are taken") as over:
                    await meters.reserve(tenant, (), COST)
                assert over.value.retry_after > 50
                headers = headers_of(meters.of(tenant.id).left(tenant.settings.limits))
                assert headers["x-ratelimit-remaining-tokens"] == "0"
                assert headers["x-ratelimit-limit-tokens"] == "100"

    asyncio.run(run())


def test_a_server_that_leaves_gives_back_what_it_held(registry: Registry) -> None:
    tenant = tenant_of(registry, max_concurrent_requests=4)

    async def run() -> None:
        async with servers(registry, 2) as (first, second):
            for _ in range(4):
                await first.reserve(tenant, (), COST)
            with pytest.raises(RateLimited):
                await second.reserve(tenant, (), COST)
            await first.close()
            await second.reserve(tenant, (), COST)

    asyncio.run(run())


def test_without_the_database_each_goes_as_far_as_it_was_granted(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = tenant_of(registry, tokens_per_minute=100)

    def away(*_: object) -> None:
        raise RegistryUnavailable("away")

    async def take(meters: Meters) -> int:
        taken = 0
        while True:
            try:
                await meters.reserve(tenant, (), COST)
            except RateLimited:
                return taken
            taken += COST.tokens

    async def run() -> None:
        async with servers(registry, 2) as (first, second):
            for meters in (first, second):
                await meters.reserve(tenant, (), COST)
            await asyncio.sleep(0.2)
            for name in ("exchange", "count", "arrive", "leave"):
                monkeypatch.setattr(registry.taken, name, away)
            taken = [await take(meters) for meters in (first, second)]
            assert 80 < sum(taken) + 2 * COST.tokens <= 100
            assert min(taken) > 20
            monkeypatch.undo()

    asyncio.run(run())


def test_after_the_database_was_away_for_long_they_take_no_more_than_before(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each then finds the others unheard of for as long, though they are there."""
    tenant = tenant_of(registry, max_concurrent_requests=10)
    for each in (module, taken_module):
        monkeypatch.setattr(each, "ALIVE_SECONDS", 0.4)

    def away(*_: object) -> None:
        raise RegistryUnavailable("away")

    async def take(meters: Meters) -> int:
        for taken in range(11):
            try:
                await meters.reserve(tenant, (), COST)
            except RateLimited:
                return taken
        return 11

    async def run() -> None:
        async with servers(registry, 2) as (first, second):
            await asyncio.gather(*(meters.reserve(tenant, (), COST) for meters in (first, second)))
            before = [await take(meters) for meters in (first, second)]
            with monkeypatch.context() as outage:
                for name in ("exchange", "count", "arrive"):
                    outage.setattr(registry.taken, name, away)
                await asyncio.sleep(0.6)
            after = [await take(meters) for meters in (first, second)]
            assert 2 + sum(before) + sum(after) == 10

    asyncio.run(run())


def test_what_is_limited_by_adapter_takes_of_both_or_neither(registry: Registry) -> None:
    limits = {"acme/a": TenantLimits(requests_per_minute=1), "acme/*": TenantLimits(requests_per_minute=2)}
    settings = TenantSettings(limits=TenantLimits(requests_per_minute=5), adapter_limits=limits)
    tenant = registry.tenants.add("acme", settings)

    async def run() -> None:
        meters = Meters(registry.taken, lambda: True)

        async def ask(*names: str) -> bool:
            try:
                await meters.reserve(tenant, names, COST)
            except RateLimited:
                return False
            return True

        assert await ask("acme/a", "acme/b")  # a mix is of both
        assert not await ask("acme/a", "acme/b")
        assert await ask("acme/b")
        assert not await ask("acme/b")
        assert await ask("acme/c")
        assert await ask("polite")
        left = headers_of(meters.of(tenant.id).left(settings.limits))["x-ratelimit-remaining-requests"]
        assert left == "1"  # those that were refused took nothing
        only = TenantLimits(completion_tokens_per_minute=1)
        changed = replace(tenant, settings=replace(settings, adapter_limits={"acme/d": only}))
        with pytest.raises(RequestError):
            await meters.reserve(changed, ["acme/d"], Cost(1, 2))
        await meters.close()

    asyncio.run(run())
