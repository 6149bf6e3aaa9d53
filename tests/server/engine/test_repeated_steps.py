"""Steps that go on from the last one, and answers that are read later, change nothing of what is answered.

The other engine makes every batch anew and reads every token at once.
"""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manylora.server.engine.answer_reader import Outcome
from manylora.server.engine.batch import Batch, build_batch
from manylora.server.engine.engine import Engine
from manylora.server.engine.repeated_batch import following_batch
from manylora.server.engine.sequence import Delta, FinishReason, Sequence
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness

Told = dict[int, list[Delta]]  # by sequence


@pytest.fixture(scope="module")
def bf16(tiny_llama: Path) -> EngineHarness:
    """Native kernels, where they run: those reuse what they made of the last step."""
    return EngineHarness(tiny_llama, dtype="bf16")


@pytest.fixture(scope="module")
def adapters(bf16: EngineHarness, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterPages]:
    root = tmp_path_factory.mktemp("adapters")
    paths = (write_adapter(root / str(i), bf16.base, rank=4, seed=i, targets="all-linear") for i in range(3))
    return [bf16.load(path) for path in paths]


def requests(harness: EngineHarness, adapters: list[AdapterPages], rng: random.Random) -> list[Sequence]:
    """Requests of every kind that a step looks at, always the same for the same numbers drawn."""
    made = []
    for seed in range(16):
        params: dict[str, Any] = {
            "max_tokens": rng.choice([1, 9, 30, 70]),
            "temperature": rng.choice([0.0, 0.0, 1.5]),
            "seed": seed,
            "ignore_eos": rng.random() < 0.5,
            "stop": rng.choice([(), (), ("e",), ("\N{REPLACEMENT CHARACTER}", "zz")]),
            "stop_token_ids": rng.choice([(), (7, 31, 200)]),
            "min_tokens": rng.choice([0, 0, 6]),
            "logprobs": rng.choice([None, None, 2]),
            "prompt_logprobs": rng.choice([None, None, None, 1]),
            "frequency_penalty": rng.choice([0.0, 0.0, 0.7]),
            "top_k": rng.choice([0, 5]),
        }
        prompt = [rng.randrange(256) for _ in range(rng.choice([1, 15, 16, 17, 40]))]
        members = [(pages, 1.0) for pages in rng.sample(adapters, rng.choice([0, 1, 1, 2]))]
        made.append(harness.sequence(prompt, *members, **params))
        if rng.random() < 0.3:
            made.append(harness.sequence(prompt, *members, **params | {"seed": seed + 100}))
            made[-1].leader = made[-2]
    return made


def churn(engine: Engine, asked: list[Sequence], rng: random.Random, *, read_later: bool) -> Told:
    """Run ``asked`` with arrivals and aborts at random steps."""
    told: Told = {i: [] for i in range(len(asked))}
    places = {sequence.id: i for i, sequence in enumerate(asked)}
    arriving, unread = list(asked), list[Outcome]()
    reads = random.Random(0)
    while arriving or engine.has_work:
        while arriving and rng.random() < 0.25:
            engine.add(arriving.pop(0))
        for sequence in sorted(engine.scheduler.running, key=lambda s: s.id):
            if rng.random() < 0.004:
                sequence.abort_requested = True
        unread += engine.advance()
        engine.check()
        if not read_later or reads.random() < 0.1:
            for sequence, delta in engine.read(unread):
                told[places[sequence.id]].append(delta)
            unread = []
    for sequence, delta in engine.read(unread):
        told[places[sequence.id]].append(delta)
    return told


@pytest.mark.parametrize("blocks", [257, 10])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_is_answered(
    bf16: EngineHarness,
    adapters: list[AdapterPages],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    blocks: int,
) -> None:
    found = []
    for plain in (True, False):
        engine = bf16.new_engine(num_blocks=blocks, max_batch_tokens=48)
        with monkeypatch.context() as patch:
            repeated = count_repeats(patch)
            if plain:
                patch.setattr(engine.scheduler, "will_repeat", lambda _: False)
            asked = requests(bf16, adapters, random.Random(seed))
            found.append(churn(engine, asked, random.Random(seed), read_later=not plain))
        assert len(repeated) > 5 or plain
    assert blocks > 100 or any(sequence.num_preemptions for sequence in asked)
    assert {d[-1].finish_reason for d in found[0].values()} >= {FinishReason.LENGTH, FinishReason.STOP}
    for plain_deltas, deltas in zip(found[0].values(), found[1].values(), strict=True):
        assert [d.finish_reason is None for d in deltas] == [True] * (len(deltas) - 1) + [False]
        assert deltas == plain_deltas


def count_repeats(patch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches of steps that went on from the last one; each must have the arrays of one made anew."""
    repeated: list[Batch] = []

    def checked(batch: Batch) -> Batch:
        made = following_batch(batch)
        assert_same_batch(made, build_batch(made.scheduled))
        repeated.append(made)
        return made

    patch.setattr("manylora.server.engine.engine.following_batch", checked)
    return repeated


def assert_same_batch(made: Batch, anew: Batch) -> None:
    assert made.sampling == anew.sampling
    assert made.scheduled == anew.scheduled
    assert (made.scoring, made.wanted) == (anew.scoring, anew.wanted) == ((), ())
    for field in fields(made.inputs):
        mine, other = getattr(made.inputs, field.name), getattr(anew.inputs, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype
            assert mine.flags.c_contiguous
            np.testing.assert_array_equal(mine, other)
        elif field.name == "lora" and mine is not None:
            assert mine.adapters == other.adapters
            for name in ("start", "adapter", "weight"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))
        else:
            assert mine == other
