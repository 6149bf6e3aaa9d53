"""A mixed batch on a base in few bits beside PEFT on the weights that its codes stand for, one by one."""

from __future__ import annotations

import torch

from tests.support.adapter_set import AdapterSet, Ask, prompt_of, recorded_logits
from tests.support.peft_oracle import LOGITS_TOLERANCE, Peft

LENGTHS = (37, 1, 50, 9, 16, 33, 17)


def assert_equals_peft(
    adapter_set: AdapterSet,
    peft: Peft,
    plain: Peft,
    tolerance: float = LOGITS_TOLERANCE,
    *,
    tells_bits: bool = True,
) -> None:
    """Assert that a row of every adapter and one of the base have PEFT's logits.

    Args:
        adapter_set: the adapters on the base in few bits.
        peft: the same on the weights that the codes stand for.
        plain: the same on the weights that were quantized, which would give others.
        tolerance: of the largest logit.
        tells_bits: whether what quantizing changes is so much more than the tolerance that it must show.
    """
    asks = [
        Ask(name, prompt_of(length, seed), max_tokens=4)
        for seed, (name, length) in enumerate(zip(adapter_set.names, LENGTHS, strict=True))
    ]
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    for ask, row, answer in zip(asks, rows, answers, strict=True):
        ids = [*ask.prompt, *answer.token_ids][:-1]
        found = torch.stack(logits[row.id]).float()
        wanted = peft.logits(ids, ask.adapter)[len(ask.prompt) - 1 :]
        scale = wanted.abs().max()
        assert (found - wanted).abs().max() <= tolerance * scale, ask.adapter
        if tells_bits:
            unquantized = plain.logits(ids, ask.adapter)[len(ask.prompt) - 1 :]
            assert (found - unquantized).abs().max() > 10 * tolerance * scale, ask.adapter
