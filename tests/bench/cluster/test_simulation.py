"""The simulation of a cluster: its laws on cases that can be worked out by hand, and what policies do."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import cycle
from math import inf
from pathlib import Path

import pytest

from bench.cluster.__main__ import LAW
from bench.cluster.adapter_memory import Hardware
from bench.cluster.law import Law, measured, on_paper
from bench.cluster.plot import draw
from bench.cluster.policies import POLICIES, Prefetches
from bench.cluster.simulation import Simulation
from bench.cluster.study import Setting, by_size, needed
from bench.cluster.table import table
from bench.cluster.workload import Demand, Request, Workload
from bench.steps import Machine

# A step takes a second for each row, nothing else; a rank of an adapter has two bytes.
SIMPLE = Law(
    replace(measured(LAW).model, rank_parameters=1),
    Machine(1e30, 1e30),
    0,
    0,
    0,
    0,
    row=1.0,
    sequence=0.0,
    step=0.0,
)
ROOMY = Hardware(
    adapter_memory=1e9, host_memory=1e9, host_speed=1e30, store_speed=1e30, store_seconds=5.0, max_stretch=inf
)


class Listed:
    """A workload of given requests."""

    def __init__(self, *requests: Request) -> None:
        self._requests = requests

    def requests(self, seconds: float) -> tuple[Request, ...]:  # noqa: ARG002
        return self._requests

    def rank_of(self, adapter: str) -> int:  # noqa: ARG002
        return 8


class InTurn:
    """To one replica after the other."""

    def __init__(self, count: int) -> None:
        self._next = cycle(range(count))

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:  # noqa: ARG002
        return next(self._next), ()

    def ended(self, replica: int) -> None: ...

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None: ...


class First:
    """Everything to the first replica."""

    def __init__(self, prefetch: Prefetches = ()) -> None:
        self._prefetch = prefetch

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:  # noqa: ARG002
        return 0, self._prefetch

    def ended(self, replica: int) -> None: ...

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None: ...


def simulate(*requests: Request, hardware: Hardware = ROOMY, law: Law = SIMPLE) -> list[float]:
    Simulation(law, hardware, First(), 1).run(Listed(*requests), 1000.0, 0.0)
    return [request.first_token for request in requests]


def request(at: float, adapter: str = "a1", prompt: int = 10, answer: int = 5, rank: int = 8) -> Request:
    return Request(at, adapter, rank, prompt, answer)


def test_a_request_waits_for_its_adapter_and_its_prompt() -> None:
    assert simulate(request(0.0)) == [15.0]  # 5 s of loading, 10 rows


def test_one_that_comes_later_finds_the_adapter_there() -> None:
    first, second = request(0.0), request(50.0)
    assert simulate(first, second) == [15.0, 60.0]
    assert (first.hit, second.hit) == (False, True)


def test_a_prompt_joins_those_who_answer_at_the_end_of_their_step() -> None:
    # The first answers from 15 s, a token a second. The second comes in the middle of a step, and its step
    # of 10 rows and one for the other begins at 18 s.
    assert simulate(request(0.0, answer=100), request(17.5)) == [15.0, 18.0 + 11.0]


def test_a_long_prompt_takes_several_steps() -> None:
    hardware = replace(ROOMY, max_batch_tokens=15)
    assert simulate(request(0.0, prompt=40), hardware=hardware) == [5.0 + 15.0 + 15.0 + 10.0]
    assert simulate(request(0.0), request(50.0, prompt=20), hardware=hardware) == [15.0, 50.0 + 15.0 + 5.0]


def test_a_prompt_is_cut_where_it_would_stretch_the_steps_of_answers() -> None:
    """By the engine's own rule, which has learned from the first prompt that a row takes a second."""
    hardware = replace(ROOMY, max_stretch=4.0)
    asked = request(0.0, prompt=100, answer=1000), request(110.0, prompt=40)
    assert simulate(*asked, hardware=hardware) == [105.0, 110.0 + (16 + 1) + (16 + 1) + (8 + 1)]


def test_attention_of_a_prompt_grows_with_what_was_there_before() -> None:
    law = replace(SIMPLE, row=0.0, attention=1.0, machine=Machine(1e30, float(SIMPLE.model.pair_flops)))
    whole = simulate(request(0.0, prompt=40), law=law)
    assert whole == [5.0 + 40 * 41 / 2]
    pieces = simulate(request(0.0, prompt=40), law=law, hardware=replace(ROOMY, max_batch_tokens=15))
    assert pieces == whole


def test_sequences_beyond_the_most_wait_for_one_to_end() -> None:
    hardware = replace(ROOMY, max_num_seqs=1)
    assert simulate(request(0.0, answer=5), request(15.5), hardware=hardware) == [15.0, 19.0 + 10.0]


def test_the_least_recently_used_goes_but_none_that_is_held() -> None:
    hardware = replace(ROOMY, adapter_memory=40.0, host_memory=1.0)  # two adapters of 16 bytes
    asked = [request(0, "a1"), request(100, "a2"), request(200, "a1"), request(300, "a3"), request(400, "a1")]
    asked += [request(500, "a2")]
    simulate(*asked, hardware=hardware)
    assert [each.hit for each in asked] == [False, False, True, False, True, False]


def test_an_adapter_waits_for_room_that_running_requests_hold() -> None:
    hardware = replace(ROOMY, adapter_memory=16.0)
    first, second = simulate(request(0.0, "a1", answer=100), request(20.0, "a2"), hardware=hardware)
    assert second == pytest.approx(first + 99.0 + 10.0)


def test_what_is_prefetched_is_a_hit() -> None:
    asked = [request(0.0), request(100.0, "a2")]
    Simulation(SIMPLE, ROOMY, First([(0, "a2")]), 1).run(Listed(*asked), 1000.0, 0.0)
    assert asked[1].hit


def test_replicas_of_one_machine_slow_each_other_down_while_both_compute() -> None:
    """A row takes 1 s alone and 2 s beside another. Loading takes 5 s, each prompt has 10 rows."""
    asked = [request(0.0), request(5.0)]
    simulation = Simulation(SIMPLE, ROOMY, InTurn(2), 2, beside=replace(SIMPLE, row=2.0))
    simulation.run(Listed(*asked), 1000.0, 0.0)
    # Alone from 5 s on, 5 rows are done when the second comes at 10 s; 5 more take 10 s, and 4 tokens 8 s.
    # In those 18 s the second has done 9 rows; its last one is alone again.
    assert [each.first_token for each in asked] == [20.0, 29.0]


def test_an_answer_is_slower_only_while_the_other_computes() -> None:
    """One of many equal steps, which are planned at once."""
    asked = [request(0.0, answer=100), request(30.0, answer=1), request(40.0)]
    hardware = replace(ROOMY, max_num_seqs=1)
    simulation = Simulation(SIMPLE, hardware, InTurn(2), 2, beside=replace(SIMPLE, row=2.0))
    simulation.run(Listed(*asked), 1000.0, 0.0)
    # The other's prompt takes from 35 to 55 s: 20 tokens before it, 10 meanwhile, 69 after it, and the third
    # request waits for the last.
    assert [each.first_token for each in asked] == [15.0, 55.0, 124.0 + 10.0]


def test_the_law_is_that_of_the_measured_points() -> None:
    """Where 32 sequences of context 200 have an adapter each, within the fit's own error."""
    told = json.loads(LAW.read_text())
    law = measured(LAW)
    for point in told["points"]:
        ranks = float(point["rank"] * point["batch"]) if point["distinct"] else 0.0
        distinct = float(point["rank"] * point["distinct"])
        found = law.seconds(
            point["batch"], point["batch"], float(point["batch"] * point["context"]), ranks, distinct
        )
        assert found == pytest.approx(point["fitted"], rel=0.02)


def test_paper_is_no_faster_than_the_hardware() -> None:
    law = on_paper(LAW)
    assert law.seconds(1, 1, 0.0, 0.0, 0.0) > 13e9 / law.machine.bytes_per_second


SMALL = Setting(
    on_paper(LAW),
    Hardware(adapter_memory=2e9, host_memory=10e9),
    Demand(rate=18.0, adapters=2000, drift=2.0),
    seconds=15.0,
    warm_up=5.0,
)


@pytest.mark.slow
def test_the_router_finds_adapters_as_hashing_does_and_waits_less_than_all() -> None:
    found = {policy: SMALL.run(policy, 32, 32 * 18.0) for policy in POLICIES}
    assert found["affinity"].hit_rate > 1.4 * found["random"].hit_rate
    assert found["affinity"].hit_rate > 0.85 * found["consistent hashing"].hit_rate
    assert found["affinity"].first_token_p99 <= min(outcome.first_token_p99 for outcome in found.values())
    assert all(outcome.unanswered == 0 for outcome in found.values())


def test_the_same_seed_gives_the_same_figures() -> None:
    assert SMALL.run("affinity", 3, 30.0) == SMALL.run("affinity", 3, 30.0)


def test_demand_follows_zipf_and_drifts() -> None:
    demand = Demand(rate=1000.0, adapters=1000, exponent=1.0, drift=1.0, drifting=0.5)
    asked = list(Workload(demand, 0).requests(20.0))
    assert len(asked) == pytest.approx(20_000, rel=0.05)
    early = [each.adapter for each in asked if each.at < 1.0]
    late = {each.adapter for each in asked if each.at > 19.0}
    top = max(set(early), key=early.count)
    assert early.count(top) / len(early) == pytest.approx(1 / 7.49, rel=0.25)  # 1 over the sum of 1/k
    assert len(set(early) - late) > 0.3 * len(set(early))


def test_a_study_is_drawn(tmp_path: Path) -> None:
    rows = list(by_size(SMALL, [2, 3], ["random", "affinity"], lambda _: None))
    found = list(needed(SMALL, 36.0, 5.0, ["random", "affinity"], lambda _: None))
    assert [row["replicas"] for row in rows] == [2, 2, 3, 3]
    assert {row["policy"]: row["replicas"] for row in found}["affinity"] in (1, 2, 3)
    assert table(rows).count("\n") == 3
    path = tmp_path / "a.svg"
    draw(rows, found, path)
    assert path.read_text().startswith("<?xml")
