"""A mixed batch of base and adapters equals PEFT one by one, for every family and both decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.adapter_set import (
    AdapterSet,
    Ask,
    prompt_of,
    recorded_logits,
    tiny_adapter_set,
)
from tests.support.peft_oracle import Peft
from tests.support.tiny_models import FAMILIES, FUSED_FAMILIES, seldom, tiny_model

CASES = [
    pytest.param(
        family,
        generic,
        marks=() if family == "llama" else (pytest.mark.slow, *seldom(family, fused=not generic)),
    )
    for generic, families in ((True, FAMILIES), (False, FUSED_FAMILIES))
    for family in families
]


@pytest.mark.parametrize(("family", "generic"), CASES)
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str, generic: bool) -> None:
    """Windows of 24 tokens are exceeded; chunks, single rows and rows of equal mixes are all there."""
    model = tiny_model(tmp_path / "model", family)
    adapter_set = tiny_adapter_set(tmp_path / "adapters", model, family, generic=generic, max_batch_tokens=48)
    assert isinstance(adapter_set.harness.decoder, FusedDecoder) != generic
    asks = [
        Ask(name, prompt_of(length, seed), max_tokens=8 + seed)
        for seed, (name, length) in enumerate(zip([*adapter_set.names, None, "all"], LENGTHS, strict=True))
    ]
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        answers = adapter_set.harness.run(*rows)
    for ask, row, answer in zip(asks, rows, answers, strict=True):
        adapter_set.compare_with_peft(ask, answer, logits[row.id])


LENGTHS = (37, 1, 50, 9, 16, 33, 17, 3, 40)


def test_the_adapters_differ_from_the_base_and_each_other(tmp_path: Path) -> None:
    """Otherwise the comparisons above would prove nothing."""
    adapter_set = tiny_adapter_set(tmp_path / "adapters", tiny_model(tmp_path / "model"), "llama")
    prompt = prompt_of(20)
    last = [adapter_set.peft.logits(prompt, name)[-1] for name in adapter_set.names]
    scale = float(last[0].abs().max())
    for i, one in enumerate(last):
        assert all(float((one - other).abs().max()) > 0.05 * scale for other in last[:i])


@pytest.mark.slow
@pytest.mark.parametrize("generic", [True, False], ids=["generic", "fused"])
def test_a_mixed_batch_in_bf16(tmp_path: Path, generic: bool) -> None:
    """In bf16 the batch is as close to float32 PEFT as PEFT in bf16 is itself."""
    model = tiny_model(tmp_path / "model")
    exact = tiny_adapter_set(tmp_path / "adapters", model, "llama")
    adapter_set = AdapterSet(model, exact.paths, dtype="bf16", generic=generic, kernels="pytorch")
    rounded = Peft(model, exact.paths, torch.bfloat16)
    asks = [Ask(name, prompt_of(30, seed), max_tokens=1) for seed, name in enumerate(adapter_set.names)]
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        adapter_set.harness.run(*rows)
    ours, theirs = [], []
    for ask, row in zip(asks, rows, strict=True):
        want = exact.peft.logits(ask.prompt, ask.adapter)[-1]
        ours.append(float((logits[row.id][0].float() - want).norm() / want.norm()))
        theirs.append(float((rounded.logits(ask.prompt, ask.adapter)[-1] - want).norm() / want.norm()))
    assert sum(ours) <= 1.3 * sum(theirs) + 1e-3
    assert max(ours) < 0.05
