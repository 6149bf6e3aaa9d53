"""Answers whose beginning is given: the logits after each token, as a full forward computes them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import torch

from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.engine.scheduler import MAX_LOGITS_BESIDE_ANSWERS, MAX_WANTED_LOGITS
from manylora.server.engine.sequence import Delta, FinishReason, ResolvedMix, SamplingParams, Sequence
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import Peft, assert_logits_match

PROMPT = tuple(range(40, 77))
GIVEN = tuple(range(100, 190))


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), tiny_llama, targets="all-linear", seed=3)


@pytest.fixture(scope="module")
def harness(tiny_llama: Path) -> EngineHarness:
    return EngineHarness(tiny_llama, max_batch_tokens=256)


@pytest.fixture(scope="module")
def peft(tiny_llama: Path, adapter: Path) -> Peft:
    return Peft(tiny_llama, {"a": adapter})


def given(
    number: int,
    *members: tuple[AdapterPages, float],
    prompt: Seq[int] = PROMPT,
    answer: Seq[int] = GIVEN,
    logits_from: int | None = None,
) -> Sequence:
    digest = mix_digest(MixEntry(pages.digest, weight) for pages, weight in members)
    return Sequence(
        1000 + number,  # apart from those the harness gives
        tuple(prompt),
        SamplingParams(max_tokens=0),
        ResolvedMix(members, digest),
        given_ids=tuple(answer),
        logits_from=len(prompt) - 1 if logits_from is None else logits_from,
    )


def steps(harness: EngineHarness, *sequences: Sequence) -> list[list[tuple[Sequence, Delta]]]:
    """The events of every step until all sequences have ended."""
    for sequence in sequences:
        harness.engine.add(sequence)
    events = []
    while harness.engine.has_work:
        events.append(harness.engine.step())
    harness.engine.check()
    assert harness.engine.blocks.num_used == 0
    return events


def rows_of(events: list[list[tuple[Sequence, Delta]]], sequence: Sequence, first: int) -> torch.Tensor:
    """The delivered rows in one piece; each must follow the one before, and one end all."""
    deltas = [delta for step in events for owner, delta in step if owner is sequence]
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [FinishReason.LENGTH]
    parts = [delta.logits for delta in deltas if delta.logits is not None]
    for part in parts:
        assert part.first == first
        first += len(part.rows)
    assert first == len(sequence)
    return torch.cat([part.rows for part in parts])


def test_logits_equal_a_full_forward_under_peft(harness: EngineHarness, adapter: Path, peft: Peft) -> None:
    harness.new_engine()
    base, adapted = given(1), given(2, (harness.load(adapter), 1.0))
    events = steps(harness, base, adapted)
    for sequence, name in ((base, None), (adapted, "a")):
        expected = peft.logits((*PROMPT, *GIVEN), name)[len(PROMPT) - 1 :]
        assert_logits_match(rows_of(events, sequence, len(PROMPT) - 1), expected)


def test_a_step_delivers_few_rows_and_never_stops_an_answer(harness: EngineHarness) -> None:
    harness.new_engine()
    running = harness.sequence(PROMPT, max_tokens=12)
    events = steps(harness, running, given(1), given(2, answer=GIVEN[::-1]), given(3, answer=GIVEN[1:]))
    for number, step in enumerate(events):
        rows = sum(len(delta.logits.rows) for _, delta in step if delta.logits is not None)
        assert rows <= (MAX_LOGITS_BESIDE_ANSWERS if 0 < number < 12 else MAX_WANTED_LOGITS)
    answering = [any(owner is running for owner, _ in step) for step in events]
    assert answering[:12] == [True] * 12, "the running answer got a token in every step"
    assert sum(len(d.logits.rows) for step in events for _, d in step if d.logits) == 91 + 91 + 90


def test_a_later_window_takes_the_prefix_from_the_cache(harness: EngineHarness, peft: Peft) -> None:
    harness.new_engine()
    steps(harness, given(1))
    window = given(2, logits_from=100)
    events = steps(harness, window)
    assert window.num_cached_tokens == 96
    expected = peft.logits((*PROMPT, *GIVEN), None)[100:]
    assert_logits_match(rows_of(events, window, 100), expected)


def test_rows_are_delivered_once_although_they_are_computed_again(tiny_llama: Path, peft: Peft) -> None:
    """Too few blocks for both: the younger is preempted while it delivers."""
    harness = EngineHarness(tiny_llama, num_blocks=10, max_batch_tokens=16)
    older = harness.sequence(PROMPT[:15], max_tokens=20)
    younger = given(1)
    events = steps(harness, older, younger)
    assert younger.num_preemptions
    expected = peft.logits((*PROMPT, *GIVEN), None)[len(PROMPT) - 1 :]
    assert_logits_match(rows_of(events, younger, len(PROMPT) - 1), expected)


def test_an_abort_between_two_steps_ends_it(harness: EngineHarness) -> None:
    harness.new_engine()
    sequence = given(1)
    harness.engine.add(sequence)
    (first,) = harness.engine.step()
    assert first[1].logits is not None
    sequence.abort_requested = True
    ((_, last),) = harness.engine.step()
    assert last.finish_reason is FinishReason.ABORT
    assert not harness.engine.has_work
    assert harness.engine.blocks.num_used == 0


def test_delivered_rows_outlive_the_step(harness: EngineHarness) -> None:
    """The decoder's logits are overwritten by the next step; what was handed out is not."""
    harness.new_engine()
    harness.engine.add(given(1))
    ((_, delta),) = harness.engine.step()
    assert delta.logits is not None
    before = delta.logits.rows.clone()
    while harness.engine.has_work:
        harness.engine.step()
    assert torch.equal(delta.logits.rows, before)
    assert delta.logits.rows.dtype == torch.float32
