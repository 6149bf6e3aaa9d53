"""Usage in the registry: what servers add comes to their sum, however it is grouped."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tenants.usage import HOUR, By, Counts, Place

DAY = 24 * HOUR
counts = st.builds(Counts, *[st.integers(0, 2**40)] * 4)
places = st.builds(
    lambda tenant, hour, model: Place(tenant, f"name of {tenant}", hour * HOUR, model),
    st.sampled_from(["a", "b"]),
    st.integers(0, 60),
    st.sampled_from(["(base)", "x", "y/z"]),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(places, counts, max_size=6), max_size=4),
    st.integers(0, 3 * DAY),
    st.integers(0, 3 * DAY),
)
def test_what_is_read_is_the_sum_of_what_was_added(
    registry: Registry, rounds: list[dict[Place, Counts]], since: int, until: int
) -> None:
    registry.usage.remove_before(100 * DAY)
    everything: dict[Place, Counts] = defaultdict(lambda: Counts(0, 0, 0, 0))
    for added in rounds:
        registry.usage.add(added)
        for place, more in added.items():
            everything[place] = everything[place].plus(more)
    for by, width in ((By.HOUR, HOUR), (By.DAY, DAY), (By.TOTAL, None)):
        for tenant in (None, "a"):
            wanted: dict[tuple[object, ...], Counts] = defaultdict(lambda: Counts(0, 0, 0, 0))
            for place, have in everything.items():
                if since <= place.hour < until and tenant in {None, place.tenant}:
                    start = None if width is None else place.hour - place.hour % width
                    key = (start, place.name, place.tenant, place.model)
                    wanted[key] = wanted[key].plus(have)
            found = registry.usage.read(tenant=tenant, since=since, until=until, by=by, limit=1000)
            assert {(r.start, r.name, r.tenant, r.model): r.counts for r in found} == wanted
            assert found == sorted(found, key=lambda r: (r.start or 0, r.name, r.tenant, r.model))
            assert registry.usage.read(tenant=tenant, since=since, until=until, by=by, limit=2) == found[:2]


def test_servers_that_add_at_the_same_time_lose_nothing(registry: Registry, url: str) -> None:
    place = Place("a", "acme", 0, "x")

    def add() -> None:
        with Registry(url) as other:
            for _ in range(5):
                other.usage.add({place: Counts(1, 2, 3, 4)})

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = registry.usage.read(limit=10)
    assert found.counts == Counts(15, 30, 45, 60)


def test_usage_is_no_news_and_outlives_its_tenant(registry: Registry) -> None:
    before = registry.generation
    registry.usage.add({Place("gone", "acme", 0, "x"): Counts(1, 1, 1, 1)})
    assert registry.generation == before
    assert [record.name for record in registry.usage.read(limit=10)] == ["acme"]


def test_old_hours_are_forgotten(registry: Registry) -> None:
    for hour in range(4):
        registry.usage.add({Place("a", "acme", hour * HOUR, "x"): Counts(1, 1, 1, 1)})
    assert registry.usage.remove_before(2 * HOUR) == 2
    assert [r.start for r in registry.usage.read(by=By.HOUR, limit=10)] == [2 * HOUR, 3 * HOUR]


@pytest.mark.parametrize("until", [0, HOUR])
def test_the_end_is_not_within(registry: Registry, until: int) -> None:
    registry.usage.add({Place("a", "acme", HOUR, "x"): Counts(1, 1, 1, 1)})
    assert registry.usage.read(until=until, limit=10) == []
