"""Steps that memory does not last for are done again in smaller ones, with the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from manylora.server.engine.row_limit import RowLimit
from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import StepInputs
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import Answer, EngineHarness


def rows(harness: EngineHarness) -> list[Sequence]:
    return [
        harness.sequence(prompt_of(n, n), max_tokens=9, temperature=t, seed=n, logprobs=1)
        for n, t in ((40, 0.0), (3, 0.8), (17, 1.0), (60, 0.0), (1, 0.9))
    ]


def found(answers: list[Answer]) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities."""
    return [(a.token_ids, [lp.logprob for d in a.deltas for lp in d.logprobs]) for a in answers]


Found = list[tuple[list[int], list[float]]]


def assert_same(some: Found, others: Found) -> None:
    """PyTorch's fp32 adds in another order where a step has fewer rows."""
    assert [tokens for tokens, _ in some] == [tokens for tokens, _ in others]
    for (_, mine), (_, other) in zip(some, others, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


class Short:
    """A decoder whose memory lasts for few rows; with ``failing`` it fails in calls of these numbers."""

    def __init__(
        self, decoder: Any, *, most: int = 10**6, failing: Callable[[int], bool] = lambda _: False
    ) -> None:
        self._decoder = decoder
        self._most = most
        self._failing = failing
        self.vocab_size = decoder.vocab_size
        self.calls = 0
        self.draws = 0
        self.largest = 0

    def step(self, inputs: StepInputs) -> torch.Tensor:
        self.calls += 1
        if len(inputs.token_ids) > self._most or self._failing(self.calls):
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.largest = max(self.largest, len(inputs.token_ids))
        logits: torch.Tensor = self._decoder.step(inputs)
        return logits

    def draw(self, draws: Draws) -> list[int]:
        self.draws += 1
        if self.draws % 3 == 0 and len(draws.logits) > 1 and self._failing(-1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        tokens: list[int] = self._decoder.draw(draws)
        return tokens


@pytest.mark.parametrize("most", [1, 2, 3, 20])
def test_answers_are_those_of_enough_memory(harness: EngineHarness, most: int) -> None:
    harness.new_engine()
    expected = found(harness.run(*rows(harness)))
    engine = harness.new_engine()
    engine.decoder = short = Short(harness.decoder, most=most)  # type: ignore[assignment]
    assert_same(found(harness.run(*rows(harness))), expected)
    assert 0 < short.largest <= most
    assert b"manylora_steps_out_of_memory_total 0.0" not in harness.metrics.exposition()[0]


@pytest.mark.parametrize("every", [2, 3, 5])
def test_failures_now_and_then(harness: EngineHarness, every: int) -> None:
    """In steps and while tokens are drawn: what was drawn is drawn again from the same numbers."""
    harness.new_engine()
    expected = found(harness.run(*rows(harness)))
    engine = harness.new_engine()
    failing = Short(harness.decoder, failing=lambda call: call < 0 or call % every == 0)
    engine.decoder = failing  # type: ignore[assignment]
    assert_same(found(harness.run(*rows(harness))), expected)
    assert failing.draws > failing.calls - failing.calls // every - 2


def test_what_does_not_fit_alone_ends_with_its_error_and_the_others_go_on(harness: EngineHarness) -> None:
    """Memory does not last for a context of more than 50 tokens, however few rows there are."""
    harness.new_engine()
    expected = found(harness.run(*rows(harness)))
    engine = harness.new_engine()

    class Narrow(Short):
        def step(self, inputs: StepInputs) -> torch.Tensor:
            if inputs.context.max() > 50:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(inputs)

    engine.decoder = Narrow(harness.decoder)  # type: ignore[assignment]
    answers = harness.run(*rows(harness))
    ends = [answer.last.finish_reason for answer in answers]
    assert [i for i, end in enumerate(ends) if end is FinishReason.ERROR] == [3]
    assert "memory" in (answers[3].last.error or "")
    assert_same(found(answers)[:3] + found(answers)[4:], expected[:3] + expected[4:])


def test_other_errors_are_none_of_memory(harness: EngineHarness) -> None:
    engine = harness.new_engine()

    def broken(_: StepInputs) -> torch.Tensor:
        raise RuntimeError("a kernel failed")

    short = Short(harness.decoder)
    short.step = broken  # type: ignore[method-assign,assignment]
    engine.decoder = short  # type: ignore[assignment]
    engine.add(harness.sequence(prompt_of(3)))
    with pytest.raises(RuntimeError, match="a kernel failed"):
        engine.step()
    engine.fail_all("")


def test_the_limit_is_halved_and_comes_back() -> None:
    limit = RowLimit(100)
    assert limit.shrink(80)
    assert limit.rows == 40
    for _ in range(64):
        limit.count()
    assert limit.rows == 40
    limit.count()
    assert limit.rows == 80
    for _ in range(65):
        limit.count()
    assert limit.rows == 100
    assert limit.shrink(1), "once more"
    limit.count()
    assert not limit.shrink(1)
    assert limit.rows == 1
    limit.count()
    assert limit.shrink(1), "another request"
    limit.count()
    limit.count()
    assert limit.shrink(1), "a step has run since"
