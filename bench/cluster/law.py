"""What a step takes by the law that ``bench.scaling`` fitted, for its own model or one on paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.scaling import DATASHEETS, TERMS
from bench.steps import Machine


@dataclass(frozen=True, slots=True)
class Model:
    """A base model, as far as the cost of a step depends on it. Two bytes a number."""

    layer_parameters: int
    head_parameters: int
    kv_bytes: int  # of one token
    rank_parameters: int  # of one rank of an adapter on all linear layers
    pair_flops: int  # of a query and a key, over all layers and heads


SMOLLM2_135M = Model(
    layer_parameters=106_168_320,
    head_parameters=28_311_552,
    kv_bytes=2 * 2 * 30 * 3 * 64,
    rank_parameters=30 * (2 * 576 + 2 * 768 + 3 * 2112 + 1152),
    pair_flops=4 * 30 * 576,
)
LLAMA_2_7B = Model(
    layer_parameters=32 * (4 * 4096**2 + 3 * 4096 * 11008),
    head_parameters=32000 * 4096,
    kv_bytes=2 * 2 * 32 * 4096,
    rank_parameters=32 * (8 * 4096 + 3 * 15104),
    pair_flops=4 * 32 * 4096,
)


@dataclass(frozen=True, slots=True)
class Law:
    """Seconds of a step as a sum of what it moves and computes."""

    model: Model
    machine: Machine
    weights: float  # times the machine's best, like the next three
    keys_and_values: float
    adapters: float
    attention: float  # of prompts
    row: float  # seconds, like the next two
    sequence: float
    step: float

    def seconds(
        self,
        rows: int,
        heads: int,
        context: float,
        rank_rows: float,
        distinct_ranks: float,
        *,
        pairs: float = 0.0,
    ) -> float:
        """A step of so many tokens.

        Args:
            rows: tokens that are computed.
            heads: sequences that get their next token.
            context: tokens whose keys and values are read, over all sequences.
            rank_rows: the ranks of the rows' adapters, added up.
            distinct_ranks: the ranks of the different adapters among them, added up.
            pairs: queries and keys of prompts that meet.
        """
        model, best = self.model, self.machine
        parameters = model.layer_parameters + model.head_parameters
        flops = 2.0 * (model.layer_parameters * rows + model.head_parameters * heads)
        weights = max(2.0 * parameters / best.bytes_per_second, flops / best.flops_per_second)
        moved = 2.0 * model.rank_parameters * distinct_ranks / best.bytes_per_second
        computed = 2.0 * model.rank_parameters * rank_rows / best.flops_per_second
        return (
            self.weights * weights
            + self.keys_and_values * model.kv_bytes * context / best.bytes_per_second
            + self.adapters * (moved + computed)
            + self.attention * model.pair_flops * pairs / best.flops_per_second
            + self.row * rows
            + self.sequence * heads
            + self.step
        )

    def adapter_bytes(self, rank: int) -> int:
        """Memory of an adapter of that rank."""
        return 2 * self.model.rank_parameters * rank


def measured(result: Path) -> Law:
    """The law of a kept result of ``bench.scaling``, for the base and the machine that it was measured on.

    Older results have no time of a sequence, or of prompts' attention: 0.
    """
    told = json.loads(result.read_text())
    machine = Machine(told["bytes_per_second"], told["flops_per_second"])
    return Law(SMOLLM2_135M, machine, *(told["law"].get(term, 0.0) for term in TERMS))


def on_paper(result: Path, gpu: str = "H100 SXM") -> Law:
    """Llama-2-7B on a GPU of a data sheet, which is no better used than the machine that was measured.

    What a step takes beside its arithmetic is that machine's; the times of a row and a sequence are left out.
    """
    law = measured(result)
    weights, keys_and_values, adapters, attention = (
        max(1.0, part) for part in (law.weights, law.keys_and_values, law.adapters, law.attention)
    )
    return Law(
        LLAMA_2_7B,
        DATASHEETS[gpu],
        weights,
        keys_and_values,
        adapters,
        attention,
        row=0.0,
        sequence=0.0,
        step=law.step,
    )
