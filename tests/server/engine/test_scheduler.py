"""The scheduler: who runs, in which order, within which budget, and that everyone ends."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.engine.scheduler import Scheduler
from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.kernels.inputs import BLOCK_SIZE
from tests.support.scheduling import add, scheduler, step
from tests.support.sequences import make_sequence


def test_a_long_prompt_is_cut_to_the_budget() -> None:
    made = scheduler(tokens=10)
    (a,) = add(made, 25)
    assert [step(made)[a.id] for _ in range(4)] == [10, 10, 5, 1]


def test_rows_that_decode_go_first_and_prompts_take_the_rest() -> None:
    made = scheduler(tokens=10)
    a, b = add(made, 10, 30)
    assert step(made) == {a.id: 10}
    assert step(made) == {a.id: 1, b.id: 9}
    (c,) = add(made, 3)
    assert step(made) == {a.id: 1, b.id: 9}  # b's prompt still takes all
    assert step(made) == {a.id: 1, b.id: 9}
    assert step(made) == {a.id: 1, b.id: 3, c.id: 3}


def test_decoding_rows_are_never_squeezed_out_by_older_prompts() -> None:
    made = scheduler(tokens=4)
    a, b = add(made, 40, 1)
    step(made)
    made.running.append(made.waiting.popleft())  # b came in beside the long prompt
    assert made.blocks.grow(b, 1)
    assert step(made) == {b.id: 1, a.id: 3}


def test_admission_is_in_order_of_arrival() -> None:
    made = scheduler(seqs=2)
    a, b, c = add(made, 3, 3, 3, max_tokens=3)
    assert list(step(made)) == [a.id, b.id]
    step(made)
    assert list(step(made)) == [a.id, b.id]
    assert list(step(made)) == [c.id]


def test_no_one_overtakes_a_prompt_that_waits_for_blocks() -> None:
    made = scheduler(blocks=4)
    a, b, c = add(made, 3 * BLOCK_SIZE, 2 * BLOCK_SIZE, 1)
    assert list(step(made)) == [a.id]
    assert list(step(made)) == [a.id]
    assert list(made.waiting) == [b, c]


def test_a_prompt_is_admitted_only_if_all_of_it_fits() -> None:
    made = scheduler(blocks=4, tokens=8)
    a, b = add(made, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE)
    step(made)
    assert made.running == [a]
    assert list(made.waiting) == [b]
    assert b.block_table == []


def test_more_sequences_than_budget_never_run() -> None:
    made = scheduler(seqs=64, tokens=3)
    add(made, 1, 1, 1, 1, 1, max_tokens=50)
    for _ in range(6):
        step(made)
    assert len(made.running) == 3
    assert len(step(made)) == 3, "every running sequence decodes in every step"


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    made = scheduler(blocks=4, tokens=100)
    a, b = add(made, 2 * BLOCK_SIZE - 1, 2 * BLOCK_SIZE - 2, max_tokens=20)
    assert set(step(made)) == {a.id, b.id}
    assert set(step(made)) == {a.id, b.id}
    (c,) = add(made, 1)
    assert set(step(made)) == {a.id}, "a needs a third block: b goes, and no newcomer comes in its place"
    assert list(made.waiting) == [b, c]
    assert b.num_preemptions == 1
    assert b.num_computed_tokens == 0
    assert b.block_table == []
    assert made.take_preemptions() == 1
    assert made.take_preemptions() == 0


def test_siblings_wait_for_the_leaders_prompt_and_share_it() -> None:
    made = scheduler(tokens=20, prefix_cache=True)
    leader = make_sequence(range(40))
    siblings = [make_sequence(range(40), leader=leader, index=i) for i in (1, 2)]
    (other,) = [make_sequence(range(100, 105))]
    for sequence in (leader, *siblings, other):
        made.add(sequence)
    assert step(made) == {leader.id: 20}
    assert step(made) == {leader.id: 20}
    assert step(made) == {leader.id: 1, siblings[0].id: 8, siblings[1].id: 8, other.id: 3}
    assert [s.num_cached_tokens for s in siblings] == [32, 32]


def test_others_pass_siblings_that_wait() -> None:
    made = scheduler(tokens=20)
    leader = make_sequence(range(25))
    sibling = make_sequence(range(25), leader=leader, index=1)
    other = make_sequence(range(3))
    for sequence in (leader, sibling, other):
        made.add(sequence)
    assert step(made) == {leader.id: 20}
    assert step(made) == {leader.id: 5, other.id: 3}
    assert list(made.waiting) == [sibling]


def test_siblings_of_an_aborted_leader_run_on_their_own() -> None:
    made = scheduler()
    leader = make_sequence(range(25))
    sibling = make_sequence(range(25), leader=leader, index=1)
    made.add(leader)
    made.add(sibling)
    leader.finish_reason = FinishReason.ABORT
    made.remove(leader)
    assert step(made) == {sibling.id: 25}


@dataclass(frozen=True)
class Arrival:
    """One request of a simulated history."""

    after: int  # steps since the one before it
    prompt: int
    answer: int
    n: int
    seed: int  # of the text: equal ones share prefixes


arrivals = st.builds(
    Arrival,
    after=st.integers(0, 6),
    prompt=st.integers(1, 70),
    answer=st.integers(1, 26),
    n=st.integers(1, 3),
    seed=st.integers(0, 1),
)


@settings(max_examples=80, deadline=None)
@given(
    history=st.lists(arrivals, min_size=1, max_size=10),
    blocks=st.integers(6, 16),  # 96 tokens at least: every single request fits
    seqs=st.integers(1, 6),
    tokens=st.integers(1, 40),
    prefix_cache=st.booleans(),
)
def test_every_sequence_ends(
    history: Seq[Arrival], blocks: int, seqs: int, tokens: int, prefix_cache: bool
) -> None:
    made = scheduler(blocks=blocks, seqs=seqs, tokens=tokens, prefix_cache=prefix_cache)
    everyone: list[Sequence] = []
    bound = sum(a.n * (a.prompt + a.answer) for a in history)
    for arrival in history:
        for _ in range(arrival.after):
            checked_step(made, tokens, seqs)
        leader: Sequence | None = None
        for index in range(arrival.n):
            prompt = range(arrival.seed, arrival.seed + arrival.prompt)
            sequence = make_sequence(prompt, max_tokens=arrival.answer, leader=leader, index=index)
            leader = leader or sequence
            everyone.append(sequence)
            made.add(sequence)
    steps = 0
    while made.running or made.waiting:
        checked_step(made, tokens, seqs)
        steps += 1
        assert steps <= 20 * bound, "no end in sight"
    assert all(s.num_output_tokens == s.params.max_tokens for s in everyone)
    assert made.blocks.num_used == 0


def checked_step(made: Scheduler, tokens: int, seqs: int) -> None:
    had_work = bool(made.running or made.waiting)
    before = [s for s in made.running if s.num_uncomputed_tokens == 1]
    ran = step(made)
    assert bool(ran) == had_work, "an idle step although there is work"
    assert sum(ran.values()) <= tokens
    assert len(ran) <= seqs
    if made.take_preemptions() == 0:
        assert all(s.id in ran for s in before), "a decoding row was left out"
