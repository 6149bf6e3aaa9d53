"""Clients that share the engine get it by their weights, whatever they send; alone they get all of it."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.engine.clients import EVERYBODY, Client
from tests.support.scheduling import scheduler, step
from tests.support.sequences import make_sequence
from tests.support.traffic import MOST, SEQS, Traffic, bound

weights = st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4)


@settings(max_examples=25, deadline=None)
@given(
    weights, st.integers(0, 100), st.lists(st.integers(SEQS + 1, 30), min_size=4, max_size=4), st.booleans()
)
def test_backlogged_clients_differ_by_a_bounded_amount(
    given_weights: list[float], seed: int, backlogs: list[int], short_of_blocks: bool
) -> None:
    """In every window, also when one sends ten times as much, and where sequences are preempted."""
    made = scheduler(seqs=SEQS, tokens=32, blocks=4 if short_of_blocks else 100)
    clients = [Client(str(index), weight) for index, weight in enumerate(given_weights)]
    traffic = Traffic(made, dict(zip(clients, backlogs, strict=False)), seed)
    for _ in range(10):
        before = Counter(traffic.service)
        traffic.run(30)
        got = {each: (traffic.service[each.name] - before[each.name]) / each.weight for each in clients}
        for one, other in combinations(clients, 2):
            assert abs(got[one] - got[other]) <= bound(clients)


def test_service_is_by_weight_within_a_twentieth_while_one_floods() -> None:
    clients = [Client("light", 1.0), Client("middle", 2.0), Client("heavy", 4.0)]
    traffic = Traffic(scheduler(seqs=SEQS, tokens=32), dict(zip(clients, (100, 10, 10), strict=True)))
    traffic.run(4000)
    per_weight = [traffic.service[client.name] / client.weight for client in clients]
    assert max(per_weight) <= 1.05 * min(per_weight)


@pytest.mark.parametrize("flood", [0, 100])
def test_who_sends_little_waits_for_nobody(flood: int) -> None:
    """Not even until one of the flood has ended: it takes the place of one, which goes on later."""
    made = scheduler(seqs=SEQS, tokens=32)
    traffic = Traffic(made, {Client("flood"): flood, EVERYBODY: 1})
    traffic.run(50)
    for _ in range(20):
        sequence = traffic.send(Client("light"))
        traffic.run(1)
        assert sequence.first_scheduled is not None
        traffic.run(2 * MOST)
        assert sequence.finish_reason is not None


@given(weights, st.integers(3, 12), st.lists(st.integers(13, 30), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_places_move_towards_the_shares_and_never_back(
    given_weights: list[float], places: int, backlogs: list[int]
) -> None:
    """One client after the other comes; each takes at most its share, once."""
    made = scheduler(seqs=places, tokens=32, blocks=1000)
    clients = [Client(str(index), weight) for index, weight in enumerate(given_weights)]
    for number, client in enumerate(clients):
        for _ in range(backlogs[number]):
            made.add(make_sequence([1], max_tokens=1000, client=client))
        there = clients[: number + 1]
        share = max(1.0, places * client.weight / sum(each.weight for each in there))
        made.take_preemptions()
        for _ in range(100):
            step(made)
        assert len(made.running) == places
        assert sum(sequence.client is client for sequence in made.running) <= (share if number else places)
        assert made.take_preemptions() <= places


def test_clients_of_one_weight_have_as_many_places() -> None:
    made = scheduler(seqs=12, tokens=32, blocks=1000)
    for number in range(1, 5):
        for _ in range(20):
            made.add(make_sequence([1], max_tokens=1000, client=Client(str(number))))
        for _ in range(30):
            step(made)
        counts = Counter(sequence.client.name for sequence in made.running)
        assert set(counts.values()) == {12 // number}


def test_one_place_is_not_taken_from_who_has_one() -> None:
    made = scheduler(seqs=2, tokens=32)
    for name in ("a", "b", "c"):
        made.add(make_sequence([1], max_tokens=50, client=Client(name)))
    for _ in range(20):
        step(made)
    assert [sequence.client.name for sequence in made.running] == ["a", "b"]


def test_a_step_with_no_row_to_spare_gives_one_with_the_place() -> None:
    made = scheduler(seqs=4, tokens=4)
    for _ in range(8):
        made.add(make_sequence([1], max_tokens=50, client=Client("flood")))
    step(made)
    late = make_sequence([1], max_tokens=2, client=Client("late"))
    made.add(late)
    step(made)
    assert late.first_scheduled is not None
    assert len(made.running) == 4


def test_alone_a_client_gets_everything_and_saves_nothing_up() -> None:
    one, other = Client("one"), Client("other")
    made = scheduler(seqs=SEQS, tokens=32)
    traffic = Traffic(made, {one: 20})
    traffic.run(300)
    assert len(made.running) == SEQS
    traffic.backlog = {one: 20, other: 20}  # back after 300 steps without work
    traffic.there[other] = []
    before = Counter(traffic.service)
    traffic.run(300)
    got = {name: traffic.service[name] - before[name] for name in ("one", "other")}
    assert abs(got["one"] - got["other"]) <= bound([one, other])


def test_a_pause_pays_no_debt() -> None:
    """Who took more than its share, and leaves for a moment, has not less to pay when it is back."""
    one, other = Client("one"), Client("other")
    made = scheduler(seqs=2, tokens=64)
    for _ in range(2):
        made.add(make_sequence(range(40), max_tokens=30, client=one))
    step(made)
    waiting = [make_sequence(range(3), max_tokens=2, client=other) for _ in range(8)]
    for sequence in waiting:
        made.add(sequence)
    while made.running and any(s.client is one for s in made.running):
        step(made)
    back = make_sequence(range(3), max_tokens=2, client=one)
    made.add(back)
    while back.first_scheduled is None:
        step(made)
    assert all(sequence.first_scheduled is not None for sequence in waiting)


def test_cached_tokens_are_not_paid_for() -> None:
    one, other = Client("one"), Client("other")
    made = scheduler(seqs=1, tokens=64, prefix_cache=True)
    first = make_sequence(range(48), max_tokens=1, client=one)
    made.add(first)
    step(made)
    cached = [make_sequence(range(48), max_tokens=1, client=one) for _ in range(2)]
    fresh = [make_sequence(range(100 * n, 100 * n + 48), max_tokens=1, client=other) for n in (1, 2)]
    for sequence in (*cached, *fresh):
        made.add(sequence)
    order = []
    while made.waiting:
        order += list(step(made))
    assert order[:3] == [cached[0].id, fresh[0].id, cached[1].id]


def test_without_tenants_the_order_is_that_of_arrival() -> None:
    made = scheduler(seqs=1, tokens=64)
    rows = [make_sequence(range(n), max_tokens=1) for n in (9, 1, 5, 30, 2)]
    for sequence in rows:
        made.add(sequence)
    assert [list(step(made)) for _ in rows] == [[sequence.id] for sequence in rows]


def test_of_those_that_run_the_one_with_most_service_makes_room() -> None:
    rich, poor = Client("rich"), Client("poor", 2.0)  # who pays half as much
    made = scheduler(seqs=4, tokens=64, blocks=6)
    first = make_sequence(range(30), max_tokens=40, client=rich)
    made.add(first)
    for _ in range(10):
        step(made)
    second = make_sequence(range(100, 103), max_tokens=40, client=poor)
    made.add(second)
    while not (first.num_preemptions or second.num_preemptions):
        step(made)
    assert (first.num_preemptions, second.num_preemptions) == (1, 0)  # though it is the older one
    while made.running or made.waiting:
        step(made)
    assert first.finish_reason is second.finish_reason is not None


def test_priorities_are_among_a_clients_own() -> None:
    """The lower is the earlier, then who came first; another client's turn does not depend on them."""
    one, other = Client("one"), Client("other")
    made = scheduler(seqs=1, tokens=32)
    asked = [(one, 0), (one, 5), (one, -2), (one, 0), (other, 9), (one, -2), (other, 9)]
    sent = [make_sequence(range(4), max_tokens=1, client=c, priority=p) for c, p in asked]
    for sequence in sent:
        made.add(sequence)
    order: list[int] = []
    while made.waiting or made.running:
        step(made)
        order += [i for i, s in enumerate(sent) if s.first_scheduled is not None and i not in order]
    ours = [i for i in order if asked[i][0] is one]
    assert ours == [2, 5, 0, 3, 1]
    assert [asked[i][0].name for i in order[:4]].count("other") == 2  # in turn, though theirs are 9


@pytest.mark.parametrize("fair", [True, False])
def test_first_come_first_served_knows_no_clients(fair: bool) -> None:
    made = scheduler(seqs=1, tokens=32, fair=fair)
    flood = [make_sequence(range(4), max_tokens=2, client=Client("flood")) for _ in range(10)]
    late = make_sequence(range(4), max_tokens=2, client=Client("light"))
    for sequence in (*flood, late):
        made.add(sequence)
    while late.first_scheduled is None:
        step(made)
    before = sum(sequence.first_scheduled is not None for sequence in flood)
    assert before <= 2 if fair else before == 10
