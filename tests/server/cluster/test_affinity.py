"""Which replica a request goes to: by what they hold, by what they do, and by hashing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.cluster.affinity import AffinityOptions, AffinityRouter
from manylora.server.cluster.fleet import Report

REPLICAS = ("a", "b", "c", "d", "e", "f")


def router(**options: Any) -> AffinityRouter:
    made = AffinityRouter(AffinityOptions(**options), seed=1)
    made.set_replicas(REPLICAS)
    for replica in REPLICAS:
        made.report(replica, Report({}, 0, 16))
    return made


def holding(made: AffinityRouter, replica: str, *names: str, ongoing: int = 0) -> None:
    made.report(replica, Report(dict.fromkeys(names, 16), ongoing, 16))


def first(made: AffinityRouter, *members: str, now: float = 0.0) -> tuple[str, ...]:
    return made.choose(members, now).groups[0]


def away_from_home(made: AffinityRouter, name: str) -> str:
    """A replica that is not among the first homes of an adapter."""
    return next(replica for replica in REPLICAS if replica not in made.homes(name, 0.0))


def test_a_holder_comes_first_and_the_home_is_told_to_fetch() -> None:
    made = router()
    holder = away_from_home(made, "x")
    holding(made, holder, "x")
    choice = made.choose(["x"], 0.0)
    assert choice.groups[0] == (holder,)
    assert choice.prefetch == ((made.homes("x", 0.0)[0], "x"),)
    assert made.choose(["x"], 1.0).prefetch == ()  # it was told
    assert made.choose(["x"], 6.0).prefetch == choice.prefetch  # and did not do it


def test_the_home_that_holds_comes_before_other_holders() -> None:
    made = router()
    home, other = made.homes("x", 0.0)[0], away_from_home(made, "x")
    holding(made, home, "x")
    holding(made, other, "x")
    assert made.choose(["x"], 0.0).groups[:2] == ((home,), (other,))


def test_what_nobody_holds_goes_home_and_is_prefetched_nowhere() -> None:
    made = router()
    choice = made.choose(["x"], 0.0)
    assert choice.groups[0] == made.homes("x", 0.0)
    assert choice.prefetch == ()


def test_the_next_request_follows_the_first_before_any_report() -> None:
    made = router()
    other = away_from_home(made, "x")
    made.sent(other, ["x"], 0.0)
    assert first(made, "x", now=1.0) == (other,)
    assert first(made, "x", now=9.0) == made.homes("x", 9.0)  # no report has confirmed it


def test_a_report_ends_the_assumption_and_an_eviction_the_holding() -> None:
    made = router()
    other = away_from_home(made, "x")
    made.sent(other, ["x"], 0.0)
    holding(made, other, "x")
    assert first(made, "x", now=60.0) == (other,)
    holding(made, other)
    assert first(made, "x", now=60.0) == made.homes("x", 60.0)


def test_an_overloaded_holder_is_left_for_a_home() -> None:
    made = router()
    holder = away_from_home(made, "x")
    holding(made, holder, "x", ongoing=20)
    assert first(made, "x") == made.homes("x", 0.0)


def test_when_homes_are_overloaded_the_next_of_the_hash_takes_over() -> None:
    made = router()
    home = made.homes("x", 0.0)[0]
    holding(made, home, "x", ongoing=20)
    order = made.choose(["x"], 0.0).order
    assert order[0] != home
    assert order[0] == first(made, "x")[0]  # always the same


def test_a_mix_goes_where_all_members_are() -> None:
    made = router()
    holding(made, "a", "x")
    holding(made, "b", "x", "y")
    holding(made, "c", "y")
    assert first(made, "x", "y") == ("b",)


def test_a_mix_that_nobody_holds_goes_to_a_home_that_lacks_less() -> None:
    made = router()
    x, y = made.homes("x", 0.0)[0], "y"
    while made.homes(y, 0.0)[0] == x:
        y += "y"
    holding(made, x, "x")
    assert first(made, "x", y) == (x,)


def test_an_adapter_gets_more_homes_as_its_load_grows_and_loses_them_again() -> None:
    made = router()
    assert made.copies("x", 0.0) == 1
    for replica in REPLICAS:
        holding(made, replica, ongoing=16)
    made.asked(["x"], 1000.0, 0.0)
    assert made.copies("x", 0.0) == 6  # all that there is, on replicas that are full
    made.asked(["y"], 3000.0, 0.0)
    assert made.copies("x", 0.0) == 3  # a quarter, twice over
    for replica in REPLICAS:
        holding(made, replica, ongoing=0)
    assert made.copies("x", 0.0) == 1


def test_load_is_rank_times_tokens_and_fades() -> None:
    made = router()
    made.report("a", Report({"x": 64, "y": 8}, 0, 16))
    for replica in REPLICAS[1:]:
        holding(made, replica, ongoing=16)
    made.asked(["x"], 100.0, 0.0)
    made.asked(["y"], 100.0, 0.0)
    assert made.copies("x", 0.0) > made.copies("y", 0.0)
    made.asked(["y"], 100.0, 300.0)
    assert made.copies("y", 300.0) > made.copies("x", 300.0)


def test_more_homes_fetch_before_they_are_asked() -> None:
    made = router()
    home = made.homes("x", 0.0)[0]
    for replica in REPLICAS:
        holding(made, replica, *(["x"] if replica == home else []), ongoing=8)
    made.asked(["x"], 1000.0, 0.0)
    choice = made.choose(["x"], 0.0)
    assert choice.groups[0] == (home,)
    assert {name for _, name in choice.prefetch} == {"x"}
    assert home not in {replica for replica, _ in choice.prefetch}


def test_a_replica_that_is_gone_is_forgotten() -> None:
    made = router()
    holder = away_from_home(made, "x")
    holding(made, holder, "x", ongoing=5)
    made.sent(holder, ["y"], 0.0)
    made.set_replicas([replica for replica in REPLICAS if replica != holder])
    made.ended(holder)
    for name in ("x", "y"):
        assert holder not in made.choose([name], 0.0).order
    assert made.fleet.mean_ongoing == 0


def test_no_replicas_no_groups() -> None:
    made = AffinityRouter()
    assert made.choose(["x"], 0.0).groups == made.choose([], 0.0).groups == ()


@pytest.mark.parametrize("wrong", [{"headroom": 0.0}, {"overload": 0.9}, {"half_life": 0.0}, {"slack": 0}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        router(**wrong)


NAMES = st.sampled_from("uvwxyz")
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from(REPLICAS), st.sets(NAMES), st.integers(0, 40)),
        st.tuples(st.just("ask"), st.sets(NAMES, max_size=3), st.integers(1, 500)),
        st.tuples(st.just("end"), st.sampled_from(REPLICAS)),
        st.tuples(st.just("replicas"), st.sets(st.sampled_from(REPLICAS), min_size=1)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_every_replica_can_be_tried_and_none_is_preferred_in_vain(
    events: list[Any],
) -> None:
    made, now, there = router(), 0.0, set(REPLICAS)
    sent: list[str] = []
    for event in events:
        now += 0.5
        if event[0] == "replicas":
            there = event[1]
            made.set_replicas(sorted(there))
        elif event[0] == "report" and event[1] in there:
            holding(made, event[1], *event[2], ongoing=event[3])
        elif event[0] == "end" and event[1] in sent:
            sent.remove(event[1])
            made.ended(event[1])
        elif event[0] == "ask":
            members = sorted(event[1])
            made.asked(members, float(event[2]), now)
            choice = made.choose(members, now)
            assert set(choice.order) == there
            assert all(choice.groups)
            assert all(replica in there and name in members for replica, name in choice.prefetch)
            _check_first(made, members, choice.groups[0], now)
            made.sent(choice.order[0], members, now)
            sent.append(choice.order[0])
        ongoing = [made.fleet.ongoing(replica) for replica in there]
        assert min(ongoing) >= 0
        assert made.fleet.mean_ongoing == pytest.approx(sum(ongoing) / len(there))


def _check_first(made: AffinityRouter, members: list[str], group: tuple[str, ...], now: float) -> None:
    """If a replica holds all members and is not overloaded, those in the first group do and are not."""
    fleet = made.fleet
    limit = max(fleet.mean_ongoing * 1.5, fleet.mean_ongoing + 8)
    full = [r for r in fleet.ids if members and all(r in fleet.holders(name, now) for name in members)]
    if any(fleet.ongoing(replica) <= limit for replica in full):
        assert all(replica in full and fleet.ongoing(replica) <= limit for replica in group)
