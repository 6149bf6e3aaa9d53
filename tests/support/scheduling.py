"""A scheduler without a model: steps that only pretend to compute and to draw tokens."""

from __future__ import annotations

import math

from manylora.server.engine.block_manager import BlockManager
from manylora.server.engine.prompt_budget import PromptBudget
from manylora.server.engine.scheduler import Scheduled, Scheduler
from manylora.server.engine.sequence import FinishReason, Sequence
from tests.support.sequences import make_sequence

UNLIMITED = PromptBudget(math.inf)


def scheduler(
    *,
    blocks: int = 100,
    seqs: int = 8,
    tokens: int = 64,
    prefix_cache: bool = False,
    prompt_budget: PromptBudget = UNLIMITED,
    fair: bool = True,
) -> Scheduler:
    """A scheduler over ``blocks`` blocks that runs at most ``seqs`` sequences and ``tokens`` rows a step."""
    manager = BlockManager(blocks + 1, "base", prefix_cache=prefix_cache)
    return Scheduler(
        manager, max_num_seqs=seqs, max_batch_tokens=tokens, prompt_budget=prompt_budget, fair=fair
    )


def step(made: Scheduler) -> dict[int, int]:
    """Run one step that pretends to compute and draw; returns the rows of each sequence that ran, by id."""
    work = made.schedule()
    for item in work:
        finish(made, item)
    made.blocks.check([*made.running, *made.waiting])
    return {item.sequence.id: item.count for item in work}


def finish(made: Scheduler, item: Scheduled) -> None:
    """Pretend that a sequence's rows were computed, and that it drew token 1 if none is left to compute."""
    sequence = item.sequence
    sequence.num_computed_tokens += item.count
    made.blocks.commit(sequence)
    if sequence.num_uncomputed_tokens:
        return
    sequence.token_ids.append(1)
    if sequence.num_output_tokens >= sequence.params.max_tokens:
        sequence.finish_reason = FinishReason.LENGTH
        made.remove(sequence)


def add(made: Scheduler, *lengths: int, max_tokens: int = 8) -> list[Sequence]:
    """Queue one sequence with a prompt of each length."""
    added = [make_sequence(range(length), max_tokens=max_tokens) for length in lengths]
    for sequence in added:
        made.add(sequence)
    return added
