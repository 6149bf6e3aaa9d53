"""How many replicas there should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.cluster.scaling import Load, replicas_wanted


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ([Load(0, 100, 0)] * 3, 1),
        ([Load(70, 100, 0)] * 3, 3),
        ([Load(71, 100, 0)] * 3, 4),
        ([Load(300, 100, 0)] * 3, 10),
        ([Load(10, 100, 0)] * 3, 1),
        ([Load(10, 100, 2)] * 3, 4),  # adapters find no room
        ([Load(10, 100, 0.3)] * 3, 3),  # and none goes while some wait
        ([Load(300, 100, 9)] * 3, 10),
        ([], 1),
    ],
)
def test_by_queue_and_by_adapters(loads: list[Load], wanted: int) -> None:
    assert replicas_wanted(loads, 1, 10) == wanted


LOADS = st.builds(Load, st.floats(0, 1e4), st.floats(1, 512), st.floats(0, 100))


@given(st.lists(LOADS, max_size=20), st.integers(1, 10), st.integers(0, 10))
def test_within_bounds_and_never_fewer_for_more_load(loads: list[Load], least: int, more: int) -> None:
    wanted = replicas_wanted(loads, least, least + more)
    assert least <= wanted <= least + more
    grown = [Load(load.ongoing * 2, load.capacity, load.adapters_waiting * 2) for load in loads]
    assert replicas_wanted(grown, least, least + more) >= wanted
