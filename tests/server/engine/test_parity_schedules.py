"""However the work is cut into steps, each request gets what PEFT alone would give it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from manylora.server.engine.sequence import Sequence as Row
from tests.support.adapter_set import AdapterSet, Ask, prompt_of, recorded_logits
from tests.support.engine_harness import Answer
from tests.support.peft_oracle import assert_logits_match


def asks_for(adapter_set: AdapterSet, *, shift: int = 0, max_tokens: int = 10) -> list[Ask]:
    """A request for the base and for each adapter, of different lengths."""
    return [
        Ask(name, prompt_of(5 + 11 * ((seed + shift) % 5), seed + shift), max_tokens)
        for seed, name in enumerate(adapter_set.names)
    ]


def run_and_compare(adapter_set: AdapterSet, asks: Sequence[Ask]) -> list[Row]:
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    for ask, row, answer in zip(asks, rows, answers, strict=True):
        adapter_set.compare_with_peft(ask, answer, logits[row.id])
    return rows


@pytest.mark.parametrize("budget", [1, 7, 23])
def test_chunked_prefill(adapter_set: AdapterSet, budget: int) -> None:
    adapter_set.harness.new_engine(max_batch_tokens=budget)
    run_and_compare(adapter_set, asks_for(adapter_set, max_tokens=5))


def test_preemption(adapter_set: AdapterSet) -> None:
    adapter_set.harness.new_engine(num_blocks=9)
    rows = run_and_compare(
        adapter_set, [Ask(name, prompt_of(10 + i, i), 30) for i, name in enumerate(adapter_set.names)]
    )
    assert sum(r.num_preemptions for r in rows) >= 3


def test_preemption_in_the_middle_of_prompts(adapter_set: AdapterSet) -> None:
    adapter_set.harness.new_engine(num_blocks=9, max_batch_tokens=7)
    asks = [Ask(name, prompt_of(60 + seed, seed), 20) for seed, name in enumerate(adapter_set.names)]
    rows = run_and_compare(adapter_set, asks)
    assert sum(r.num_preemptions for r in rows) >= 1


def test_prefix_hits(adapter_set: AdapterSet) -> None:
    engine = adapter_set.harness.new_engine()
    asks = [Ask(name, prompt_of(40), 6) for name in adapter_set.names]
    cold = run_and_compare(adapter_set, asks)
    assert all(row.num_cached_tokens == 0 for row in cold)
    longer = [Ask(ask.adapter, (*ask.prompt, *prompt_of(20, seed=9)), 6) for ask in asks]
    warm = run_and_compare(adapter_set, [*asks, *longer])
    assert all(row.num_cached_tokens == 32 for row in warm)
    assert engine.blocks.num_used == 0


def test_an_answer_continues_from_the_blocks_it_left(adapter_set: AdapterSet) -> None:
    """Blocks that decode steps filled are as good as those of a prompt."""
    adapter_set.harness.new_engine()
    first = Ask("all", prompt_of(20), 30)
    (answer,) = adapter_set.harness.run(adapter_set.row(first))
    (row,) = run_and_compare(adapter_set, [Ask("all", (*first.prompt, *answer.token_ids, 1, 2, 3), 6)])
    assert row.num_cached_tokens == 48


@pytest.mark.parametrize("seed", range(3))
def test_rows_join_and_leave(adapter_set: AdapterSet, seed: int) -> None:
    """Requests arrive at random steps of each other, some are aborted, with little room and budget."""
    rng = random.Random(seed)
    engine = adapter_set.harness.new_engine(
        num_blocks=rng.choice([14, 60]), max_batch_tokens=rng.choice([9, 64])
    )
    asks = [
        Ask(
            rng.choice(adapter_set.names),
            prompt_of(rng.randint(1, 50), rng.randint(0, 3)),
            rng.randint(1, 20),
        )
        for _ in range(14)
    ]
    rows = [adapter_set.row(ask) for ask in asks]
    answers = {row.id: Answer() for row in rows}
    waiting, aborted = list(rows), set()
    while waiting or engine.has_work:
        while waiting and rng.random() < 0.4:
            engine.add(waiting.pop())
        for row in engine.scheduler.running:
            if rng.random() < 0.01:
                row.abort_requested = True
                aborted.add(row.id)
        for row, delta in engine.step():
            answers[row.id].token_ids += delta.token_ids
            answers[row.id].deltas.append(delta)
        engine.check()
    assert engine.blocks.num_used == 0
    for ask, row in zip(asks, rows, strict=True):
        answer = answers[row.id]
        assert [d.finish_reason is None for d in answer.deltas[:-1]] == [True] * (len(answer.deltas) - 1)
        assert answer.last.finish_reason == ("abort" if row.id in aborted else "length")
        done = Ask(ask.adapter, ask.prompt, len(answer.token_ids)) if row.id in aborted else ask
        if done.max_tokens:
            adapter_set.compare_with_peft(done, answer)


def test_base_rows_are_untouched_beside_adapters(adapter_set: AdapterSet) -> None:
    """The base rows of a mixed batch are those of the same batch without adapters.

    Up to the last bits: torch's matrix products depend on how their buffers happen to be aligned. What an
    adapter adds is thousands of times larger. (The native step is held to the bit elsewhere.)
    """
    shapes = [(None, 20), ("all", 20), (None, 3), ("mlp", 9), ("attention", 1), (None, 30)]
    found = []
    for mixed in (True, False):
        adapter_set.harness.new_engine(max_batch_tokens=200)
        asks = [Ask(name if mixed else None, prompt_of(n, n), 8) for name, n in sorted(shapes, key=str)]
        rows = [adapter_set.row(ask) for ask in asks]
        with recorded_logits() as logits:
            adapter_set.harness.run(*rows)
        base = [row.id for row, (name, _) in zip(rows, sorted(shapes, key=str), strict=True) if name is None]
        found.append([torch.stack(logits[i]) for i in base])
    for mixed_logits, plain_logits in zip(*found, strict=True):
        torch.testing.assert_close(mixed_logits, plain_logits, rtol=1e-5, atol=1e-5)


def test_many_rows_of_one_adapter_beside_loose_ones(adapter_set: AdapterSet) -> None:
    """Eight rows and more of a mix are computed as one segment, fewer row by row: both at once."""
    adapter_set.harness.new_engine()
    names = ["all"] * 11 + ["rslora"] * 8 + ["mlp"] * 7 + ["attention", "patterns", None, None]
    run_and_compare(adapter_set, [Ask(name, prompt_of(2 + i, i), 5) for i, name in enumerate(names)])


@pytest.mark.parametrize(("budget", "blocks"), [(256, 200), (7, 200), (30, 9)])
def test_prompt_logprobs(adapter_set: AdapterSet, budget: int, blocks: int) -> None:
    adapter_set.harness.new_engine(max_batch_tokens=budget, num_blocks=blocks)
    asks = [Ask(name, prompt_of(9 + 3 * i, i), 24) for i, name in enumerate(adapter_set.names)]
    rows = [adapter_set.row(ask, prompt_logprobs=3, logprobs=2) for ask in asks]
    answers = adapter_set.harness.run(*rows)
    assert blocks > 100 or sum(r.num_preemptions for r in rows) > 0
    for ask, answer in zip(asks, answers, strict=True):
        adapter_set.compare_with_peft(ask, answer)
        assert all(not d.prompt_logprobs for d in answer.deltas[1:])
        ids = [*ask.prompt, *answer.token_ids]
        table = adapter_set.peft.logits(ids[:-1], ask.adapter).log_softmax(-1)
        scores = [*answer.deltas[0].prompt_logprobs, *(lp for d in answer.deltas for lp in d.logprobs)]
        assert len(scores) == len(ids)
        assert scores[0] is None
        for score, token, row in zip(scores[1:], ids[1:], table, strict=True):
            assert score is not None
            assert score.token_id == token
            assert score.logprob == pytest.approx(float(row[token]), abs=2e-3)
            best = row.topk(len(score.top))
            assert [t for t, _ in score.top] == best.indices.tolist()
            assert_logits_match(torch.tensor([lp for _, lp in score.top]), best.values)


def test_only_scoring_the_prompt(adapter_set: AdapterSet) -> None:
    adapter_set.harness.new_engine(max_batch_tokens=7)
    row = adapter_set.row(Ask("all", prompt_of(33), 0), prompt_logprobs=1)
    (answer,) = adapter_set.harness.run(row)
    (delta,) = answer.deltas
    assert delta.finish_reason == "length"
    assert delta.token_ids == ()
    assert len(delta.prompt_logprobs) == 33


def test_siblings_share_the_prompt(adapter_set: AdapterSet) -> None:
    adapter_set.harness.new_engine(max_batch_tokens=20)
    ask = Ask("rslora", prompt_of(50), 12)
    leader = adapter_set.row(ask)
    rows = [leader, *(adapter_set.row(ask) for _ in range(3))]
    for row in rows[1:]:
        row.leader = leader
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    for row, answer in zip(rows, answers, strict=True):
        adapter_set.compare_with_peft(ask, answer, logits[row.id])
    assert [row.num_cached_tokens for row in rows] == [0, 48, 48, 48]


def test_drawn_siblings_differ_and_repeat(llama_adapter_set: AdapterSet) -> None:
    """A seeded answer does not depend on whether its siblings and others run beside it."""
    harness = llama_adapter_set.harness
    harness.new_engine()
    ask = Ask("all", prompt_of(10), 20)

    def rows(*indices: int) -> list[Row]:
        made = []
        for index in indices:
            row = llama_adapter_set.row(ask, temperature=1.0, seed=5, top_p=0.95)
            made.append(Row(row.id, ask.prompt, row.params, row.mix, index=index))
        return made

    together = [
        a.token_ids for a in harness.run(*rows(0, 1, 2), llama_adapter_set.row(Ask("mlp", prompt_of(30), 9)))
    ]
    assert len({tuple(t) for t in together[:3]}) == 3
    assert [harness.run(row)[0].token_ids for row in rows(0, 1, 2)] == together[:3]
