"""The prefix cache end to end: nobody ever gets K and V that other weights or another tenant computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from manylora.server.engine.sequence import Sequence as Row
from tests.support.adapter_set import AdapterSet, Ask, prompt_of, tiny_adapter_set
from tests.support.adapters import write_adapter
from tests.support.engine_harness import Answer


def run(adapter_set: AdapterSet, row: Row) -> Answer:
    (answer,) = adapter_set.harness.run(row)
    return answer


def test_a_b_base_a_in_turn_each_equal_their_cold_runs(adapter_set: AdapterSet) -> None:
    adapter_set.harness.new_engine()
    expected = {"all": [0, 48, 48], "mlp": [0, 48], None: [0, 48], "attention": [0]}
    cached: dict[str | None, list[int]] = {}
    for name in ("all", "mlp", None, "all", None, "mlp", "attention", "all"):
        ask = Ask(name, prompt_of(50), 8)
        row = adapter_set.row(ask)
        answer = run(adapter_set, row)
        adapter_set.compare_with_peft(ask, answer)  # which is a cold run by definition
        cached.setdefault(name, []).append(row.num_cached_tokens)
    assert cached == expected


def test_one_adapter_at_another_weight_shares_nothing(llama_adapter_set: AdapterSet) -> None:
    harness = llama_adapter_set.harness
    harness.new_engine()
    for weight, cached in [(1.0, 0), (0.5, 0), (1.0, 32), (0.5, 32), (-1.0, 0)]:
        row = harness.sequence(prompt_of(40), (llama_adapter_set.pages["all"], weight), max_tokens=2)
        run(llama_adapter_set, row)
        assert row.num_cached_tokens == cached


def test_members_in_another_order_share(llama_adapter_set: AdapterSet) -> None:
    harness = llama_adapter_set.harness
    harness.new_engine()
    members = [(llama_adapter_set.pages["all"], 0.5), (llama_adapter_set.pages["mlp"], 1.0)]
    first, second = harness.sequence(prompt_of(40), *members), harness.sequence(prompt_of(40), *members[::-1])
    assert run(llama_adapter_set, first).token_ids == run(llama_adapter_set, second).token_ids
    assert second.num_cached_tokens == 32


def test_a_republished_adapter_starts_cold(llama_adapter_set: AdapterSet, tmp_path: Path) -> None:
    """Same name, same place in memory, other weights: the old revision's blocks are out of reach."""
    harness = llama_adapter_set.harness
    harness.new_engine()
    answers = []
    for seed in (1, 2, 1):
        path = write_adapter(tmp_path / "support", harness.base, rank=8, seed=seed, scale=0.5)
        pages = harness.load(path)
        row = harness.sequence(prompt_of(40), (pages, 1.0), max_tokens=8)
        answers.append((run(llama_adapter_set, row).token_ids, row.num_cached_tokens))
        harness.pool.release(pages)
    (first, cold), (other, cold_as_well), (again, warm) = answers
    assert (cold, cold_as_well, warm) == (0, 0, 32)
    assert first == again
    assert first != other


def test_tenants_share_nothing(llama_adapter_set: AdapterSet) -> None:
    llama_adapter_set.harness.new_engine()
    for salt, cached in [(b"", 0), (b"one", 0), (b"two", 0), (b"one", 32), (b"", 32)]:
        row = llama_adapter_set.row(Ask("all", prompt_of(40), 2))
        row.salt = salt
        run(llama_adapter_set, row)
        assert row.num_cached_tokens == cached


@pytest.mark.parametrize("broken", [float("inf"), 1e30])
def test_what_overflows_stays_with_the_one_who_caused_it(
    llama_adapter_set: AdapterSet, broken: float
) -> None:
    """Blocks that held infinities are given to others, whose masked positions they then are."""
    harness = llama_adapter_set.harness
    harness.new_engine(num_blocks=9)
    pages = harness.load(llama_adapter_set.paths["all"])
    region = harness.pool.data[pages.start : pages.start + 2048]
    region.fill_(broken)
    harness.run(*(harness.sequence(prompt_of(31, i), (pages, 1.0), max_tokens=1) for i in range(4)))
    harness.pool.release(pages)
    for name in (None, "all"):
        asks = [Ask(name, prompt_of(3 + i, 7 + i), 20) for i in range(4)]
        for ask, answer in zip(asks, harness.run(*map(llama_adapter_set.row, asks)), strict=True):
            llama_adapter_set.compare_with_peft(ask, answer)


def test_the_cache_can_be_switched_off(tmp_path: Path, llama_adapter_set: AdapterSet) -> None:
    off = tiny_adapter_set(tmp_path, llama_adapter_set.directory, "llama", prefix_cache=False)
    for _ in range(2):
        row = off.row(Ask(None, prompt_of(40), 3))
        off.compare_with_peft(Ask(None, prompt_of(40), 3), run(off, row))
        assert row.num_cached_tokens == 0
