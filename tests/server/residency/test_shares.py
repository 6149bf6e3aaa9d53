"""Each tenant is guaranteed a share of the device's memory for adapters; what it leaves others borrow."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.order.turns import Asker
from manylora.server.model.pages.space import PageSpace
from manylora.server.residency.revision import Revision
from manylora.server.residency.shares import KEPT_SECONDS, Shares
from tests.support.small_device_cache import SmallDeviceCache


async def use(cache: SmallDeviceCache, client: Client, *revisions: Revision) -> None:
    """A request of ``client`` that runs with each of ``revisions``, one after the other."""
    for revision in revisions:
        await asyncio.wait_for(cache.device.acquire([revision], Asker(client, revision.digest)), 10)
        cache.device.release([revision])


def resident(*revisions: Revision) -> list[str]:
    return [revision.digest for revision in revisions if revision.pages is not None]


async def test_the_loads_of_one_tenant_leave_another_its_share() -> None:
    cache = SmallDeviceCache(8)
    many, one = Client("many"), Client("one")
    cold = [cache.revision(f"cold{index}") for index in range(30)]
    own = [cache.revision(f"own{index}") for index in range(6)]
    await use(cache, one, *own)  # six of eight: four are guaranteed, two borrowed
    await use(cache, many, *cold)
    assert resident(*own) == ["own2", "own3", "own4", "own5"]  # what was used last
    assert len(resident(*cold)) == 4
    await use(cache, one, *own)
    assert len(resident(*cold)) == 4  # which are guaranteed in turn
    cache.device.check()


async def test_shares_are_by_weight_and_of_those_that_are_there() -> None:
    cache = SmallDeviceCache(8)
    light, heavy = Client("light", 1.0), Client("heavy", 3.0)
    first, second = ([cache.revision(f"{name}{index}") for index in range(10)] for name in "ab")
    await use(cache, light, *first)
    assert len(resident(*first)) == 8  # alone it has everything
    await use(cache, heavy, *second)
    await use(cache, light, *first)
    assert (len(resident(*first)), len(resident(*second))) == (2, 6)


async def test_those_without_tenant_count_as_one() -> None:
    cache = SmallDeviceCache(4)
    first, second = ([cache.revision(f"{name}{index}") for index in range(6)] for name in "ab")
    await use(cache, Client("tenant"), *first)
    await use(cache, EVERYBODY, *second)
    await use(cache, Client("tenant"), *first)
    assert (len(resident(*first)), len(resident(*second))) == (2, 2)


async def test_what_is_published_pushes_nothing_out_that_is_guaranteed() -> None:
    cache = SmallDeviceCache(2)
    used, borrowed, new = (cache.revision(name) for name in "abc")
    await use(cache, Client("one"), borrowed)
    await use(cache, Client("two"), used)
    assert not await cache.device.offer(new, cache.packed(new))
    assert resident(used, borrowed, new) == ["a", "b"]
    await use(cache, Client("one"), cache.revision("d"))
    assert resident(used, borrowed) == ["a"]  # its own may go


async def test_what_can_only_be_there_beside_less_than_the_guaranteed_is_there_all_the_same() -> None:
    cache = SmallDeviceCache(4)
    big = cache.revision("big", 3)
    own = [cache.revision(name) for name in "ab"]
    await use(cache, Client("one"), *own)
    await use(cache, Client("two"), big)  # more than its share of two
    assert resident(big) == ["big"]
    await use(cache, Client("one"), *own)
    assert resident(*own) == ["a", "b"]


async def test_room_in_pieces_is_joined_and_what_stood_in_between_comes_back() -> None:
    cache = SmallDeviceCache(6)
    one, two = Client("one"), Client("two")
    kept, gone = ([cache.revision(f"{name}{index}") for index in range(3)] for name in "kg")
    for pair in zip(gone, kept, strict=True):
        await use(cache, two, pair[0])
        await use(cache, one, pair[1])
    big = cache.revision("big", 2)
    await use(cache, two, big)  # g and k by turns: no two places that are free lie side by side
    assert resident(big) == ["big"]
    for _ in range(1000):
        if not cache.device.num_waiting:
            break
        await asyncio.sleep(0.001)
    assert len(resident(*kept)) == 3
    cache.device.check()


def test_after_an_hour_without_use_nothing_is_guaranteed() -> None:
    now = [0.0]
    shares = Shares(lambda: now[0])
    revision = Revision("a", 10)
    shares.used(Client("one"), [revision])
    assert shares.guaranteed_to_others(Client("two"), 100) == {revision}
    now[0] = KEPT_SECONDS + 1
    assert not shares.guaranteed_to_others(Client("two"), 100)


def test_without_tenants_nothing_is_counted() -> None:
    shares = Shares()
    shares.used(EVERYBODY, [Revision("a", 10)])
    assert not shares.guaranteed_to_others(None, 100)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(1, 3)), min_size=1, max_size=60),
)
def test_guarantees_never_exceed_what_is_there(
    weights: list[float], uses: list[tuple[int, int, int]]
) -> None:
    """Of others' guarantees there is always left what one's own share is, and each has at most its share."""
    shares, capacity = Shares(), 20
    clients = [Client(str(index), weight) for index, weight in enumerate(weights)]
    revisions: dict[tuple[int, int], Revision] = {}
    seen = set()
    for who, which, size in uses:
        client = clients[who % len(clients)]
        seen.add(client)
        revision = revisions.setdefault((who % len(clients), which), Revision(f"{who}-{which}", size))
        shares.used(client, [revision])
        for other in clients:
            present = sum(each.weight for each in seen | {other})
            found = shares.guaranteed_to_others(other, capacity)
            assert sum(r.nbytes for r in found) <= capacity * (1 - other.weight / present) + 1e-9


def test_room_that_releases_would_make_is_told() -> None:
    space = PageSpace(0, 10)
    starts = [space.reserve(2) for _ in range(5)]
    assert starts == [0, 2, 4, 6, 8]
    space.release(4)
    assert space.would_fit(2, [])
    assert not space.would_fit(3, [0, 8])
    assert space.would_fit(4, [2])
    assert space.would_fit(6, [2, 6])
    assert not space.would_fit(7, [2, 6])
    space.check()
