"""Sequences that run on different weights, the base's and those of merged copies: they take turns."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.server.engine.prompt_budget import PromptBudget
from manylora.server.engine.sequence import ResolvedMix, Sequence
from tests.support.scheduling import scheduler, step
from tests.support.sequences import make_sequence


def on_weights(name: str | None, length: int = 4, max_tokens: int = 4) -> Sequence:
    """A sequence on weights of that name; all those of one name share them."""
    made = make_sequence(range(length), max_tokens=max_tokens)
    if name is not None:
        made.mix = ResolvedMix((), name.encode(), name, _WEIGHTS[name])
    return made


class NoWeights:
    """Told apart by identity, as the scheduler does."""

    nbytes = 0

    def put(self, *_: object) -> None:
        raise AssertionError


_WEIGHTS = {name: NoWeights() for name in "ab"}


def test_a_step_runs_on_one_set_of_weights_and_all_take_turns() -> None:
    made = scheduler()
    rows = [on_weights(name) for name in ("a", None, "b", "a", None)]
    for row in rows:
        made.add(row)
    seen = []
    while made.waiting or made.running:
        ran = step(made)
        (weights,) = {row.mix.label for row in rows if row.id in ran}
        seen.append(weights)
    assert sorted(seen) == sorted(["(base)", "a", "b"] * 4)
    assert all(len(set(seen[i : i + 3])) == 3 for i in range(0, len(seen), 3))


def test_a_prompt_is_cut_for_answers_that_run_on_other_weights() -> None:
    """They wait for the whole step: with it and their own, a round takes twice their own time."""
    pace = PromptBudget(2.0)
    for _ in range(200):
        for rows in (1, 512):
            pace.observe(rows, 0.009 + 0.0006 * rows)
    made = scheduler(tokens=512, blocks=500, seqs=100, prompt_budget=pace)
    answers = [on_weights("a", 4, 50) for _ in range(60)]
    for row in answers:
        made.add(row)
    assert sum(step(made).values()) == 240
    prompt = on_weights("b", 1000)
    made.add(prompt)
    counts = [step(made) for _ in range(2)]
    assert [list(ran) == [prompt.id] for ran in counts].count(True) == 1
    (rows,) = (ran[prompt.id] for ran in counts if prompt.id in ran)
    assert 58 <= rows <= 60


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b"]), st.integers(1, 40), st.integers(1, 6)), max_size=12
    ),
    st.integers(4, 12),
    st.integers(2, 16),
)
@settings(deadline=None)
def test_every_sequence_ends_whatever_it_runs_on(
    asked: list[tuple[str | None, int, int]], blocks: int, tokens: int
) -> None:
    made = scheduler(blocks=blocks, tokens=tokens, seqs=4)
    for name, length, count in asked:
        made.add(on_weights(name, length, count))
    for _ in range(5000):
        if not made.waiting and not made.running:
            return
        assert step(made)
    raise AssertionError("some sequence never ends")
