"""One sequence's way through the synchronous engine: how it ends, and what the client gets to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest

from manylora.server.engine.sequence import FinishReason
from tests.support.engine_harness import Answer, EngineHarness

EOS = 258
LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP


def answer(harness: EngineHarness, say: str | int = "a", **params: Any) -> Answer:
    """The answer of a model that is made to say the same token again and again."""
    tokenizer = harness.loaded.tokenizer
    token = say if isinstance(say, int) else tokenizer.encode(say)[0]
    row = harness.sequence(tokenizer.encode("hello"), logit_bias={token: 100.0}, **params)
    harness.new_engine()
    (found,) = harness.run(row)
    assert [d.finish_reason is None for d in found.deltas[:-1]] == [True] * (len(found.deltas) - 1)
    return found


@pytest.mark.parametrize(
    ("params", "text", "tokens", "reason", "stop_reason"),
    [
        ({"max_tokens": 1}, "a", 1, LENGTH, None),
        ({"max_tokens": 5}, "aaaaa", 5, LENGTH, None),
        ({"max_tokens": 5, "stop": ("aaa",)}, "", 3, STOP, "aaa"),
        ({"max_tokens": 5, "stop": ("b", "aaaaaa")}, "aaaaa", 5, LENGTH, None),
        ({"max_tokens": 5, "stop": ("a",), "min_tokens": 2}, "a", 2, STOP, "a"),
        ({"max_tokens": 5, "stop": ("aa",), "min_tokens": 4}, "aaa", 5, STOP, "aa"),
        ({"max_tokens": 2, "stop": ("aa",)}, "", 2, STOP, "aa"),
        ({"say": EOS, "max_tokens": 5, "ignore_eos": False}, "", 1, STOP, None),
        ({"say": EOS, "max_tokens": 3, "ignore_eos": True}, "", 3, LENGTH, None),
        (
            {"say": EOS, "max_tokens": 1, "ignore_eos": False, "skip_special_tokens": False},
            "<|im_end|>", 1, STOP, None,
        ),
        (
            {"say": EOS, "max_tokens": 2, "ignore_eos": True, "skip_special_tokens": False},
            "<|im_end|><|im_end|>", 2, LENGTH, None,
        ),
        ({"max_tokens": 5, "stop_token_ids": (EOS,)}, "aaaaa", 5, LENGTH, None),
        ({"say": EOS, "max_tokens": 5, "stop_token_ids": (EOS,)}, "", 1, STOP, EOS),
    ],
)  # fmt: skip
def test_how_an_answer_ends(
    harness: EngineHarness,
    params: dict[str, Any],
    text: str,
    tokens: int,
    *,
    reason: str,
    stop_reason: object,
) -> None:
    found = answer(harness, **params)
    assert (found.text, len(found.token_ids)) == (text, tokens)
    assert (found.last.finish_reason, found.last.stop_reason) == (reason, stop_reason)


def test_an_end_is_held_back_until_the_minimum(harness: EngineHarness) -> None:
    found = answer(harness, EOS, max_tokens=9, min_tokens=4, ignore_eos=False)
    assert len(found.token_ids) == 5
    assert EOS not in found.token_ids[:4]
    assert found.token_ids[4] == EOS
    assert found.last.finish_reason is STOP


def test_held_text_comes_with_the_last_delta(harness: EngineHarness) -> None:
    found = answer(harness, max_tokens=3, stop=("aaaaaaa",))
    assert [d.text for d in found.deltas] == ["", "", "aaa"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_make_up_the_text_of_the_tokens(harness: EngineHarness, seed: int) -> None:
    """A random model says broken UTF-8 most of the time."""
    harness.new_engine()
    prompt = harness.loaded.tokenizer.encode("x")
    (found,) = harness.run(harness.sequence(prompt, temperature=1.0, seed=seed, max_tokens=60))
    assert found.text == harness.loaded.tokenizer.decode(found.token_ids)


def test_logprobs_only_for_those_who_ask(harness: EngineHarness) -> None:
    harness.new_engine()
    rows = [harness.sequence([1, 2, 3], max_tokens=2, logprobs=k) for k in (None, 0, 1, 20)]
    for k, found in zip((None, 0, 1, 20), harness.run(*rows), strict=True):
        for delta in found.deltas:
            assert len(delta.logprobs) == (k is not None)
            for entry in delta.logprobs:
                assert entry.token_id == delta.token_ids[0]
                assert len(entry.top) == k
                assert k == 0 or entry.top[0] == (entry.token_id, entry.logprob)


def test_logprobs_do_not_see_penalties_and_bias(harness: EngineHarness) -> None:
    plain = harness.sequence([1, 2, 3], max_tokens=1, logprobs=5)
    harness.new_engine()
    (expected,) = harness.run(plain)
    found = harness.run(
        harness.sequence([1, 2, 3], max_tokens=1, logprobs=5, logit_bias={7: 100.0}, temperature=0.5)
    )[0].deltas[0]
    assert found.token_ids == (7,)
    assert found.logprobs[0].top == expected.deltas[0].logprobs[0].top


def test_cached_tokens_are_reported(harness: EngineHarness) -> None:
    harness.new_engine()
    for cached in (0, 32):
        (found,) = harness.run(harness.sequence(range(40), max_tokens=2))
        assert {d.cached_tokens for d in found.deltas} == {cached}


def test_an_aborted_sequence_ends_before_the_next_step(harness: EngineHarness) -> None:
    engine = harness.new_engine()
    stay, leave = harness.sequence([1], max_tokens=3), harness.sequence([2], max_tokens=300)
    engine.add(stay)
    engine.add(leave)
    engine.step()
    leave.abort_requested = True
    events = [(s, d.finish_reason) for s, d in engine.step() if s is leave]
    assert events == [(leave, FinishReason.ABORT)]
    assert leave.block_table == []
    assert leave.num_output_tokens == 1
    assert not any(s is leave for s, _ in engine.step())
    assert not engine.has_work
    assert sample_of(harness, "manylora_tokens_after_abort_total") == 0


def test_what_is_counted(harness: EngineHarness) -> None:
    harness.new_engine()
    harness.run(harness.sequence(range(40), max_tokens=4), harness.sequence(range(9), max_tokens=2))
    metrics = {
        "manylora_generated_tokens_total": 6,
        "manylora_prompt_tokens_total": 49,
        "manylora_prefix_cache_queried_tokens_total": 49,
        "manylora_requests_running": 0,
        "manylora_kv_cache_used_blocks": 0,
    }
    for name, expected in metrics.items():
        assert sample_of(harness, name) == expected, name


class _Reader:
    """A tokenizer that can be made to fail."""

    eos_ids: frozenset[int] = frozenset()
    added_tokens: Mapping[int, str] = MappingProxyType({})
    broken = False

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> str:
        assert not shown
        if self.broken:
            raise RuntimeError("no such token")
        return ("x" if skip_special_tokens else "y") * len(token_ids)


def test_an_answer_that_cannot_be_read_ends_alone(harness: EngineHarness) -> None:
    engine = harness.new_engine()
    fine, odd = harness.sequence([1], max_tokens=6), harness.sequence([2], max_tokens=300)
    odd.tokenizer = reader = _Reader()
    engine.add(fine)
    engine.add(odd)
    told = engine.step()
    reader.broken = True
    unread = engine.advance() + engine.advance()  # the engine is a step ahead of who reads
    told += engine.read(unread)
    while engine.has_work:
        told += engine.step()
    assert [d.finish_reason for s, d in told if s is fine] == [None] * 5 + [LENGTH]
    assert [d.finish_reason for s, d in told if s is odd] == [None, FinishReason.ERROR]
    assert odd.block_table == []
    assert sample_of(harness, "manylora_aborts_total") == 0


def sample_of(harness: EngineHarness, name: str) -> float:
    """The sum of a metric over its labels."""
    families = harness.metrics.registry.collect()
    return sum(s.value for family in families for s in family.samples if s.name == name)
