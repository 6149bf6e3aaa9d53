"""Vocabularies of their own around a step: the sums themselves, and the native step with given rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from manylora.adapters.format.vocabulary.changes import TableDelta, VocabularyDelta
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.inputs import AdapterPages, EmbeddedRows, StepInputs, lora_inputs
from manylora.server.kernels.reference.linear import row_by_row
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.reference.vocabulary import plan_vocabulary
from manylora.server.model.pages.tables import BaseTables, pack_vocabulary, place, row_hashes
from tests.support.kernel_cases import Batcher, Pages, Shape, random_decoder

V, D, R = 40, 16, 3


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


E, H = random(V, D, seed=1), random(V, D, seed=2)


def changed(table: torch.Tensor, tokens: list[int], seed: int, size: int = V) -> torch.Tensor:
    """The table with some rows new, and rows for the tokens behind its end."""
    result = torch.cat([table, random(size - V, D, seed=seed)])
    result[tokens] = random(len(tokens), D, seed=seed + 1)
    return result


LORA = VocabularyDelta(
    V,
    TableDelta(a=random(R, V, seed=3), b=random(D, R, seed=4), scaling=0.7),
    TableDelta(a=random(R, D, seed=5), b=random(V, R, seed=6), scaling=0.3),
)
WHOLE = VocabularyDelta(
    V, TableDelta(table=changed(E, [*range(V)], 7)), TableDelta(table=changed(H, [3, 9], 8))
)
ROWS = VocabularyDelta(V, TableDelta(tokens=(5, 2), rows=random(2, D, seed=9)))
GROWN = VocabularyDelta(
    V + 3,
    TableDelta(table=changed(E, [], 10, V + 3), a=random(R, V + 3, seed=11), b=random(D, R, seed=12)),
    TableDelta(table=changed(H, [0], 13, V + 3), tokens=(V + 1,), rows=random(1, D, seed=14)),
)
ALL = {"lora": LORA, "whole": WHOLE, "rows": ROWS, "grown": GROWN}


def dense(delta: TableDelta | None, base: torch.Tensor, size: int, *, head: bool) -> torch.Tensor:
    """The change [size, D] written out."""
    table = torch.cat([base, torch.zeros(size - V, D)])
    if delta is None:
        return torch.zeros_like(table)
    result = table.clone()
    if delta.table is not None:
        result[: len(delta.table)] = delta.table
    if delta.rows is not None:
        result[list(delta.tokens)] = delta.rows
    if delta.a is not None and delta.b is not None:
        product = delta.scaling * (delta.b @ delta.a)
        result[: product.shape[0 if head else 1]] += product if head else product.T
    return result - table


def pool_of(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict[str, AdapterPages]]:
    tables, pages, parts, start = BaseTables(E.to(dtype), H.to(dtype)), {}, [torch.zeros(7, dtype=dtype)], 7
    for name, delta in ALL.items():
        packed = pack_vocabulary(delta, tables, dtype)
        assert packed is not None
        data = torch.zeros(packed.elements, dtype=dtype)
        own = place(packed.put(data, 0), start)
        pages[name] = AdapterPages(name, np.zeros(1, np.int64), np.zeros(1, np.int32), vocabulary=own)
        parts.append(data)
        start += packed.elements
    return torch.cat(parts), pages


MIXES: list[dict[str, float]] = [
    {}, {"lora": 1.0}, {"whole": 1.0}, {"rows": 1.0}, {"rows": 1.0}, {"grown": 1.0}, {},
    {"lora": 0.5, "whole": -0.3, "grown": 2.0}, {"rows": 0.5, "grown": 0.25},
]  # fmt: skip


def step_of(
    pages: dict[str, AdapterPages], tokens: list[list[int]], mixes: list[dict[str, float]] = MIXES
) -> StepInputs:
    counts = [len(t) for t in tokens]
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    nothing: Any = np.zeros(1, np.int32)
    return StepInputs(
        token_ids=np.array([t for part in tokens for t in part], np.int64),
        positions=nothing, slots=nothing, query_start=start, context=nothing, block_tables=nothing,
        logits_rows=start[1:].astype(np.int64) - 1,
        lora=lora_inputs([[(pages[name], w) for name, w in mix.items()] for mix in mixes]),
    )  # fmt: skip


def test_embeddings_and_logits_are_the_sums_written_out() -> None:
    pool, pages = pool_of()
    tokens = [[1, 2], [0, 39], [7], [5, 2, 6], [2], [41, 3, 42], [9], [4, 40], [V + 2, 5]]
    inputs = step_of(pages, tokens)
    plan = plan_vocabulary(pool, E, inputs, V)
    assert plan is not None
    ready = plan.prepare(inputs)
    assert ready.embedded is not None
    assert ready.token_ids.max() < V
    given = dict(zip(ready.embedded.rows.tolist(), ready.embedded.values, strict=True))
    hidden = random(len(MIXES), D, seed=20)
    logits = plan.conclude(plan.correct(hidden @ H.T, hidden), hidden)
    assert logits.shape == (len(MIXES), V + 3)
    row = 0
    for i, (mix, ids) in enumerate(zip(MIXES, tokens, strict=True)):
        size = max([V, *(ALL[name].size for name in mix)])
        table = torch.cat([E, torch.zeros(size - V, D)])
        head = torch.cat([H, torch.zeros(size - V, D)])
        for name, weight in mix.items():
            delta = ALL[name]
            table[: delta.size] += weight * dense(delta.embedding, E, delta.size, head=False)
            head[: delta.size] += weight * dense(delta.head, H, delta.size, head=True)
        for token in ids:
            if mix:
                torch.testing.assert_close(given[row], table[token], atol=1e-5, rtol=1e-5)
            else:
                assert row not in given
            row += 1
        torch.testing.assert_close(logits[i, :size], head @ hidden[i], atol=1e-4, rtol=1e-4)
        assert bool((logits[i, size:] == float("-inf")).all())


def test_rows_of_the_base_keep_their_bits() -> None:
    pool, pages = pool_of()
    inputs = step_of(pages, [[1]] * len(MIXES))
    plan = plan_vocabulary(pool, E, inputs, V)
    assert plan is not None
    hidden = random(len(MIXES), D, seed=20)
    logits = hidden @ H.T
    assert torch.equal(plan.conclude(plan.correct(logits, hidden), hidden)[[0, 6], :V], logits[[0, 6]])


def _row_by_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return row_by_row(x, weight)


def _fixed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    products = pytest.importorskip("manylora.server.kernels.cuda.fixed.products", reason="needs Triton")
    found: torch.Tensor = products.multiply(x, weight)
    return found


@pytest.mark.parametrize("multiply", [_row_by_row, _fixed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_the_same_bits_whoever_shares_their_vocabulary(multiply: Any, dtype: torch.dtype) -> None:
    """With products that don't depend on the number of rows; they are the numbers that others make."""
    pool, pages = pool_of(dtype)
    mix = MIXES[7]

    def run(rows: list[int], multiply: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = step_of(pages, [[(7 * row) % V] for row in rows], [mix] * len(rows))
        plan = plan_vocabulary(pool, E.to(dtype), inputs, V, multiply)
        assert plan is not None
        embedded = plan.prepare(inputs).embedded
        assert embedded is not None
        hidden = random(30, D, seed=20).to(dtype)[rows]
        return embedded.values, plan.correct(hidden @ torch.zeros(D, V, dtype=dtype), hidden)

    together, usual = run([*range(30)], multiply), run([*range(30)], torch.nn.functional.linear)
    for part, expected in zip(together, usual, strict=True):
        torch.testing.assert_close(part, expected, atol=0.1 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)
    for rows in ([29], [3, 17], [*range(29, -1, -1)]):
        for part, expected in zip(run(rows, multiply), together, strict=True):
            assert torch.equal(part, expected[rows])


def test_steps_without_a_vocabulary_have_no_plan() -> None:
    _, pages = pool_of()
    inputs = step_of(pages, [[1]] * len(MIXES))
    assert plan_vocabulary(torch.zeros(1), E, replace(inputs, lora=None), V) is None
    plain = {name: replace(p, vocabulary=None) for name, p in pages.items()}
    assert plan_vocabulary(torch.zeros(1), E, step_of(plain, [[1]] * len(MIXES)), V) is None


def test_copies_of_the_bases_rows_take_no_room() -> None:
    tables = BaseTables(E, H)
    packed = pack_vocabulary(WHOLE, tables, torch.float32)
    assert packed is not None
    assert packed.tables["embedding"].tokens.tolist() == [*range(V)]
    assert packed.tables["head"].tokens.tolist() == [3, 9]
    copies = VocabularyDelta(V, TableDelta(table=E.clone()), TableDelta(table=H.clone()))
    assert pack_vocabulary(copies, tables, torch.float32) is None
    tables.drop_head()
    assert pack_vocabulary(copies, tables, torch.float32) is None


def test_trained_rows_win_over_the_table_they_lie_in() -> None:
    table = changed(H, [3, 9], 8)
    delta = VocabularyDelta(V, None, TableDelta(table=table, tokens=(9, 1), rows=random(2, D, seed=30)))
    packed = pack_vocabulary(delta, BaseTables(E, H), torch.float32)
    assert packed is not None
    found = packed.tables["head"]
    assert found.tokens.tolist() == [1, 3, 9]
    expected = torch.stack([random(2, D, seed=30)[1], table[3], random(2, D, seed=30)[0]])
    assert torch.equal(found.parts[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prints_tell_rows_apart_by_any_bit(dtype: torch.dtype) -> None:
    table = random(300, 7, seed=1).to(dtype)
    assert len(set(row_hashes(table).tolist())) == 300
    other = table.clone()
    other[:, 3] = torch.nextafter(other[:, 3], torch.tensor(9.0, dtype=dtype))
    assert not bool((row_hashes(table) == row_hashes(other)).any())
    assert torch.equal(row_hashes(table), row_hashes(table.clone()))


def test_the_native_step_takes_rows_and_gives_hidden_states() -> None:
    """As if the tokens of those rows had been others; the reference does the same."""
    weights = random_decoder(Shape())
    reason = NativeStep.unsupported(weights)
    if reason is not None:
        pytest.skip(reason)
    pages = Pages(weights)
    steps = (NativeStep(weights, pages.pool, 8, 64, 2), ReferenceStep(weights, pages.pool, 8))
    batch = Batcher(8, 101)
    inputs = batch.step([(batch.sequence(9), 9), (batch.sequence(1), 1), (batch.sequence(3), 3)])
    given = EmbeddedRows(np.array([0, 3, 9]), weights.embedding[[5, 6, 7]].float())
    swapped = inputs.token_ids.copy()
    swapped[[0, 3, 9]] = [5, 6, 7]
    for step in steps:
        hidden = torch.zeros(len(inputs.logits_rows), 64, dtype=torch.bfloat16)
        logits = step.step(replace(inputs, embedded=given, hidden=hidden)).clone()
        assert torch.equal(logits, step.step(replace(inputs, token_ids=swapped)))
        product = hidden.float() @ weights.lm_head.float().T
        torch.testing.assert_close(logits.float(), product, atol=0.05, rtol=0.02)
    with pytest.raises(ValueError, match="whose embedding is given lies outside the step"):
        steps[0].step(replace(inputs, embedded=replace(given, rows=np.array([0, 3, 13]))))
