"""A mix is the explicit sum of its members' deltas: any weights, ranks and targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.engine.batch import build_batch
from manylora.server.engine.scheduler import Scheduled
from manylora.server.engine.sequence import ResolvedMix
from manylora.server.engine.sequence import Sequence as Row
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapter_set import AdapterSet, prompt_of, recorded_logits
from tests.support.engine_harness import Answer
from tests.support.peft_oracle import assert_logits_match, summed
from tests.support.sequences import make_sequence

Members = Sequence[tuple[str, float]]

MIXES: list[Members] = [
    [("attention", 0.7), ("mlp", 0.3)],
    [("all", 1.0), ("rslora", -0.5)],
    [("patterns", -1.0), ("one-layer", 2.0)],
    [("attention", 1.5)],
    [("attention", 0.0)],
    [("all", 1e-3), ("mlp", 1.0)],
    [("attention", 0.5), ("mlp", 0.5), ("all", 0.5), ("rslora", 0.5), ("one-layer", -0.5), ("patterns", 0.5)],
]


def row_of(adapter_set: AdapterSet, members: Members, length: int, max_tokens: int = 6) -> Row:
    pages = [(adapter_set.pages[name], weight) for name, weight in members if weight]
    return adapter_set.harness.sequence(prompt_of(length, length), *pages, max_tokens=max_tokens)


def compare_with_peft(
    adapter_set: AdapterSet, members: Members, row: Row, answer: Answer, logits: list[torch.Tensor]
) -> None:
    model = summed(
        adapter_set.directory, adapter_set.harness.base, [(adapter_set.paths[n], w) for n, w in members]
    )
    ids = [*row.token_ids[: row.num_prompt_tokens], *answer.token_ids]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
    expected = expected[row.num_prompt_tokens - 1 :]
    assert_logits_match(torch.stack(logits), expected)
    assert expected.argmax(-1).tolist() == answer.token_ids


def test_a_batch_of_mixes_equals_the_sums(adapter_set: AdapterSet) -> None:
    """Prompts longer and shorter than a segment: the matrix product and the gathered rows."""
    adapter_set.harness.new_engine()
    rows = [row_of(adapter_set, members, 5 + 9 * (i % 3)) for i, members in enumerate(MIXES)]
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    for members, row, answer in zip(MIXES, rows, answers, strict=True):
        compare_with_peft(adapter_set, members, row, answer, logits[row.id])


def test_the_sum_is_what_peft_computes_for_one(llama_adapter_set: AdapterSet) -> None:
    """The explicit sum as oracle agrees with PEFT where both can speak."""
    ids = prompt_of(20)
    for name in llama_adapter_set.paths:
        model = summed(
            llama_adapter_set.directory,
            llama_adapter_set.harness.base,
            [(llama_adapter_set.paths[name], 1.0)],
        )
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        assert_logits_match(logits, llama_adapter_set.peft.logits(ids, name))


def test_the_same_adapter_twice_adds_up(llama_adapter_set: AdapterSet) -> None:
    """Also where the entries reach the kernels unmerged."""
    llama_adapter_set.harness.new_engine()
    rows = [
        row_of(llama_adapter_set, [("all", 0.75), ("all", 0.5)], 12),
        row_of(llama_adapter_set, [("all", 1.25)], 12),
    ]
    with recorded_logits() as logits:
        first, second = llama_adapter_set.harness.run(*rows)
    assert first.token_ids == second.token_ids
    assert_logits_match(torch.stack(logits[rows[0].id]), torch.stack(logits[rows[1].id]))
    assert rows[0].mix.digest == rows[1].mix.digest


def test_opposite_weights_are_the_base(llama_adapter_set: AdapterSet) -> None:
    llama_adapter_set.harness.new_engine()
    row = row_of(llama_adapter_set, [("rslora", 2.0), ("rslora", -2.0)], 12)
    assert row.mix.digest == b""
    with recorded_logits() as logits:
        (answer,) = llama_adapter_set.harness.run(row)
    compare_with_peft(llama_adapter_set, [], row, answer, logits[row.id])


def test_one_adapter_at_different_strengths_side_by_side(llama_adapter_set: AdapterSet) -> None:
    """Rows of one adapter but other weights are other mixes, and never one segment."""
    llama_adapter_set.harness.new_engine()
    strengths = [-1.0, -0.5, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    rows = [row_of(llama_adapter_set, [("attention", w)], 3, max_tokens=4) for w in strengths]
    with recorded_logits() as logits:
        answers = llama_adapter_set.harness.run(*rows)
    for weight, row, answer in zip(strengths, rows, answers, strict=True):
        compare_with_peft(llama_adapter_set, [("attention", weight)], row, answer, logits[row.id])


def test_the_batch_lists_each_adapter_once() -> None:
    """Equal mixes lie side by side, and the entries of each row are its own."""
    pages = {n: AdapterPages(n, np.zeros(1, np.int64), np.ones(1, np.int32)) for n in ("a", "b")}

    def scheduled(*members: tuple[str, float]) -> Scheduled:
        digest = mix_digest(MixEntry(n, w) for n, w in members)
        mix = ResolvedMix(tuple((pages[n], w) for n, w in members), digest)
        row = make_sequence(range(3), mix=mix)
        row.block_table = [1]
        return Scheduled(row, 3)

    mixes: list[Members] = [[("a", 1.0)], [], [("a", 0.5), ("b", 2.0)], [("a", 1.0)], [("b", 1.0)], []]
    batch = build_batch([scheduled(*m) for m in mixes])
    lora = batch.inputs.lora
    assert lora is not None
    assert batch.distinct_adapters == 2
    digests = [s.sequence.mix.digest for s in batch.scheduled]
    assert digests == sorted(digests)
    for i, item in enumerate(batch.scheduled):
        entries = range(lora.start[i], lora.start[i + 1])
        found = [(lora.adapters[lora.adapter[e]].digest, float(lora.weight[e])) for e in entries]
        assert found == [(p.digest, w) for p, w in item.sequence.mix.members]


def test_a_batch_of_base_rows_does_no_adapter_work() -> None:
    row = make_sequence(range(3))
    row.block_table = [1]
    assert build_batch([Scheduled(row, 3)]).inputs.lora is None


@pytest.mark.parametrize(("scores", "whole", "half"), [(None, [4], []), (0, [0, 1, 2, 3, 4], [0, 1, 2])])
def test_only_rows_that_are_wanted_get_logits(scores: int | None, whole: list[int], half: list[int]) -> None:
    row = make_sequence(range(5), prompt_logprobs=scores)
    row.block_table = [1]
    assert build_batch([Scheduled(row, 5)]).inputs.logits_rows.tolist() == whole
    assert build_batch([Scheduled(row, 3)]).inputs.logits_rows.tolist() == half
