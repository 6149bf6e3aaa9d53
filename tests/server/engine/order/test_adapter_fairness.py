"""Within a tenant its adapters share its turns, and no other tenant has more or less for it."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.order.counters import Counters
from manylora.server.engine.sequence import ResolvedMix, Sequence
from tests.support.scheduling import scheduler, step
from tests.support.sequences import make_sequence
from tests.support.traffic import MOST, SEQS, Source, Traffic, bound

tenants = st.lists(
    st.tuples(
        st.sampled_from([0.5, 1.0, 3.0]),
        st.lists(st.integers(SEQS + 1, 40), min_size=1, max_size=4),  # how much waits for each adapter
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=15, deadline=None)
@given(tenants, st.integers(0, 100), st.booleans())
def test_adapters_of_a_tenant_and_tenants_differ_by_a_bounded_amount(
    drawn: list[tuple[float, list[int]]], seed: int, short_of_blocks: bool
) -> None:
    """In every window, however much waits for one of them, and where sequences are preempted."""
    made = scheduler(seqs=SEQS, tokens=32, blocks=4 if short_of_blocks else 100)
    clients = [Client(str(index), weight) for index, (weight, _) in enumerate(drawn)]
    backlog: dict[Client | Source, int] = {
        Source(client, str(index)): count
        for client, (_, counts) in zip(clients, drawn, strict=True)
        for index, count in enumerate(counts)
    }
    traffic = Traffic(made, backlog, seed)
    for _ in range(8):
        before, before_with = Counter(traffic.service), Counter(traffic.service_with)
        traffic.run(40)
        got = {each: (traffic.service[each.name] - before[each.name]) / each.weight for each in clients}
        assert all(abs(got[a] - got[b]) <= bound(clients) for a, b in combinations(clients, 2))
        for client, (_, counts) in zip(clients, drawn, strict=True):
            keys = [(client.name, str(index)) for index in range(len(counts))]
            own = [traffic.service_with[key] - before_with[key] for key in keys]
            assert max(own) - min(own) <= bound([EVERYBODY])


def test_one_busy_adapter_keeps_no_other_of_its_tenant_waiting() -> None:
    tenant = Client("tenant")
    made = scheduler(seqs=SEQS, tokens=32)
    busy, other = Source(tenant, "busy"), Source(tenant, "other")
    traffic = Traffic(made, {busy: 200, other: 0})
    traffic.run(100)
    for _ in range(10):
        sequence = traffic.send(other)
        steps = 0
        while sequence.first_scheduled is None:
            traffic.run(1)
            steps += 1
        assert steps <= MOST + 1  # that the next place is free
        traffic.run(MOST)


def test_what_the_adapters_of_those_without_tenant_get_is_by_arrival() -> None:
    made = scheduler(seqs=1, tokens=64)
    mixes = [ResolvedMix(label=name) for name in "aaaabc"]
    rows = [make_sequence(range(4), max_tokens=1, mix=mix) for mix in mixes]
    for sequence in rows:
        made.add(sequence)
    assert [list(step(made)) for _ in rows] == [[sequence.id] for sequence in rows]


def test_a_lower_priority_comes_first_whatever_its_adapter_has_got() -> None:
    tenant = Client("tenant")
    made = scheduler(seqs=1, tokens=32)
    asked = [("a", 0), ("a", 0), ("a", -1), ("b", 0), ("b", 3), ("a", -1)]
    sent = [
        make_sequence(range(4), max_tokens=1, client=tenant, priority=p, mix=ResolvedMix(label=adapter))
        for adapter, p in asked
    ]
    for sequence in sent:
        made.add(sequence)
    order: list[int] = []
    while made.waiting or made.running:
        step(made)
        order += [i for i, s in enumerate(sent) if s.first_scheduled is not None and i not in order]
    assert order == [2, 5, 3, 0, 1, 4]


def test_of_those_that_run_the_adapter_with_most_service_makes_room() -> None:
    tenant = Client("tenant")
    made = scheduler(seqs=4, tokens=64, blocks=6)
    first, second = _started(tenant, "rich", 30), _started(tenant, "poor", 3)
    made.add(first)
    made.add(second)
    while not (first.num_preemptions or second.num_preemptions):
        step(made)
    assert (first.num_preemptions, second.num_preemptions) == (1, 0)  # though it is the older one


def test_counters_that_no_longer_matter_are_forgotten_and_debts_are_not() -> None:
    counters = Counters()
    counters.join("stays")
    for index in range(5000):
        name = str(index)
        counters.join(name)
        counters.pay(name, 5.0 if index == 7 else 0.0)  # who comes is lifted to who has work
        counters.leave(name)
        if index % 100 == 0:
            counters.pay("stays", 0.01)
    told = counters.standings()
    assert len(told.paid) < 2500
    assert told.of("7") == 5.01
    assert told.of("8") == told.least == told.paid["stays"]


def _started(client: Client, adapter: str, length: int) -> Sequence:
    return make_sequence(range(length), max_tokens=40, client=client, mix=ResolvedMix(label=adapter))
