"""What an accelerator runs before the first request: steps within bounds, every size, and clear faults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from manylora.server.errors import ConfigError
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import StepInputs
from manylora.server.model.warm_up import warm_up
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import EngineHarness


class Captures:
    """Notes what is captured."""

    num_failed = 1

    def __init__(self) -> None:
        self.log: list[str] = []

    def sizes(self, rows: int, context: int) -> list[tuple[int, int]]:
        return [(rows, context), (1, 1)]

    def chunks(self, rows: int, sequences: int, context: int) -> list[list[int]]:
        return [[min(rows, context) // sequences] * sequences, [5]]

    def restart(self) -> None:
        self.log.append("restart")

    def seal(self) -> None:
        self.log.append("seal")


class Recorder:
    """A decoder that notes the steps it is given; with ``harness`` it runs them."""

    def __init__(self, harness: EngineHarness | None = None, captures: Captures | None = None) -> None:
        self.harness = harness
        self.capturing = captures
        self.modules = range(14)
        self.steps: list[StepInputs] = []
        self.drawn = 0

    def step(self, inputs: StepInputs) -> torch.Tensor:
        self.steps.append(inputs)
        if self.capturing is not None:
            self.capturing.log.append("adapted" if inputs.lora else "base")
        if self.harness is not None:
            return self.harness.decoder.step(inputs)
        return torch.zeros(len(inputs.logits_rows), 8)

    def draw(self, draws: Draws) -> list[int]:
        self.drawn += len(draws.logits)
        return [0] * len(draws.logits)


@pytest.mark.parametrize(("rows", "sequences", "context"), [(64, 8, 100), (8, 8, 5), (4, 100, 64), (1, 1, 1)])
def test_the_largest_step(rows: int, sequences: int, context: int) -> None:
    decoder = Recorder()
    warm_up(decoder, rows=rows, sequences=sequences, context=context)  # type: ignore[arg-type]
    (inputs,) = decoder.steps
    assert len(inputs.token_ids) == min(rows, min(sequences, rows) - 1 + context)
    assert len(inputs.context) == decoder.drawn == min(rows, sequences)
    assert inputs.context.max() == context
    assert (inputs.positions >= 0).all()
    assert (inputs.positions < context).all()
    assert (inputs.slots < 16).all(), "block 0 only"
    assert not inputs.block_tables.any()
    last = inputs.query_start[1:] - 1
    assert np.array_equal(inputs.positions[last], np.full(len(last), context - 1))


def test_every_size_is_run_with_and_without_adapters_between_a_fresh_start_and_the_seal() -> None:
    captures = Captures()
    decoder = Recorder(captures=captures)
    warm_up(decoder, rows=32, sequences=4, context=64)  # type: ignore[arg-type]
    assert captures.log == ["restart", "base", *["adapted", "base"] * 4, "seal"]
    counts = [np.diff(inputs.query_start).tolist() for inputs in decoder.steps[1::2]]
    assert counts == [[1] * 4, [1], [8] * 4, [5]]
    for first, second in zip(decoder.steps[1::2], decoder.steps[2::2], strict=True):
        assert np.array_equal(first.query_start, second.query_start)


def test_real_steps_change_no_answer(tiny_llama: Path) -> None:
    harness = EngineHarness(tiny_llama, num_blocks=40)
    rows = [harness.sequence(prompt_of(20), max_tokens=6)]
    expected = harness.run(*rows)[0].token_ids
    decoder = Recorder(harness, Captures())
    decoder.modules = range(len(harness.decoder.modules))
    warm_up(decoder, rows=48, sequences=5, context=64)  # type: ignore[arg-type]
    assert all(dataclasses.is_dataclass(step) for step in decoder.steps)
    harness.new_engine()
    assert harness.run(harness.sequence(prompt_of(20), max_tokens=6))[0].token_ids == expected


def test_memory_that_does_not_last_names_the_options() -> None:
    decoder = Recorder()

    def short(_: StepInputs) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    decoder.step = short  # type: ignore[method-assign,assignment]
    with pytest.raises(ConfigError, match=r"2048 tokens and 256 sequences: lower --max-batch-tokens"):
        warm_up(decoder, rows=2048, sequences=256, context=4096)  # type: ignore[arg-type]
