"""Rendezvous hashing: stable between processes, even, and moving no more keys than it must."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.cluster.rendezvous import Rendezvous, hashed, weights

KEYS = [f"adapter-{number}" for number in range(2000)]


def table(replicas: list[str]) -> Rendezvous:
    made = Rendezvous()
    made.set_replicas(replicas)
    return made


def test_every_process_and_version_gives_the_same_homes() -> None:
    assert hashed("support") == 0x7E038954D18639C4
    assert table(["a", "b", "c"]).homes("support", 3) == table(["c", "b", "a"]).homes("support", 3)


@given(
    st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=12),
    st.text(max_size=20),
    st.integers(1, 15),
)
def test_more_homes_begin_with_the_fewer(replicas: set[str], key: str, count: int) -> None:
    found = table(sorted(replicas)).homes(key, count)
    assert len(found) == len(set(found)) == min(count, len(replicas))
    assert set(found) <= replicas
    assert table(sorted(replicas)).homes(key, 1) == found[:1]


@given(st.integers(2, 30), st.integers(0, 29))
def test_a_replica_that_goes_moves_its_own_keys_only(count: int, gone: int) -> None:
    replicas = [f"replica-{number}" for number in range(count)]
    before = table(replicas)
    lost = replicas.pop(gone % count)
    after = table(replicas)
    for key in KEYS[:200]:
        first, second = before.homes(key, 2)
        assert after.homes(key, 1) == ((second,) if first == lost else (first,))


def test_keys_are_spread_evenly() -> None:
    counts = Counter(table([f"r{number}" for number in range(10)]).homes(key, 1)[0] for key in KEYS)
    assert len(counts) == 10
    assert max(counts.values()) < 1.35 * len(KEYS) / 10


def test_homes_are_remembered_until_the_replicas_change() -> None:
    made = table(["a", "b", "c"])
    first = made.homes("x", 1)[0]
    made.set_replicas({"a", "b", "c"} - {first})
    assert made.homes("x", 1) != (first,)
    assert made.homes("x", 9) == made.homes("x", 2)


def test_weights_are_those_of_splitmix64() -> None:
    """Of its generator seeded with 0: the first output is the finalizer of the golden ratio's 64 bits."""
    found = weights(0, np.array([0x9E3779B97F4A7C15, 0], np.uint64))
    assert found.tolist() == [0xE220A8397B1DCDAF, 0]
