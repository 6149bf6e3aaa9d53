"""No check takes NaN or an infinity for equality: each of the five that compare logits fails."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manylora.adapters.errors import MergeFailed
from manylora.adapters.fidelity.measures import (
    NotNumbers,
    relative_distance,
    relative_errors,
    relative_peak,
)
from manylora.adapters.fidelity.totals import Totals
from manylora.adapters.merge import verify as verifying
from manylora.adapters.training.errors import GateFailed
from manylora.adapters.training.gate.publish_gate import GateLogits, check
from manylora.server.comparison.divergence import distances
from manylora.server.errors import ModelRefused
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.loader import load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe

BAD = (math.nan, math.inf)
SIDES = ("expected", "found", "both")


def pair(value: float, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two equal sets of logits, but for one logit of one side or of both."""
    one = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    other = one.clone()
    if side in ("expected", "both"):
        one[2, 3] = value
    if side in ("found", "both"):
        other[2, 3] = value
    return one, other


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", [*BAD, -math.inf])
def test_every_measure_says_so(value: float, side: str) -> None:
    one, other = pair(value, side)
    assert relative_errors(one, other)[2] == math.inf
    assert math.isnan(relative_distance(one, other))
    assert math.isnan(relative_peak(one, other))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", [*BAD, -math.inf])
def test_totals_of_a_merged_copy(value: float, side: str) -> None:
    totals = Totals()
    totals.add(*pair(0.5, "both"))
    with pytest.raises(NotNumbers):
        totals.add(*pair(value, side))
    assert (totals.rows, totals.largest) == (5, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", BAD)
def test_a_comparison_of_models(value: float, side: str) -> None:
    with pytest.raises(NotNumbers):
        distances(*pair(value, side))


@pytest.mark.parametrize("where", ["trained", "reloaded", "base", "all"])
@pytest.mark.parametrize("value", [*BAD, -math.inf])
def test_the_publish_gate(value: float, where: str) -> None:
    sides = {
        name: GateLogits(pair(value, "both" if where in (name, "all") else "none")[0], None)
        for name in ("trained", "reloaded", "base")
    }
    config = SimpleNamespace(product="adapter", quantization="none", task="sft")
    session: Any = SimpleNamespace(config=config, loader=SimpleNamespace(dtype=torch.float32))
    with pytest.raises(GateFailed):
        check(sides["trained"], sides["reloaded"], sides["base"], session)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", [*BAD, -math.inf])
def test_the_verification_of_a_merge(value: float, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, merged = pair(value, side)
    # The base alone, with adapters, with weights that are rounded as well, and merged.
    answers: Iterator[torch.Tensor] = iter([beside, beside, beside, merged])
    weight = SimpleNamespace(is_changed=True, dtype=torch.float32)
    stored = SimpleNamespace(directory=Path(), stacks={})
    plan: Any = SimpleNamespace(stored=stored, deltas={}, shards=[[weight]])
    monkeypatch.setattr(verifying, "load_model", lambda *_: None)
    monkeypatch.setattr(verifying, "random_prompt_logits", lambda _: next(answers))
    with pytest.raises(MergeFailed):
        verifying.verify(plan, Path(), torch.float32)


@pytest.mark.parametrize("value", [*BAD, -math.inf])
def test_the_probe(tiny_llama: Path, value: float) -> None:
    loaded = load_model(tiny_llama, dtype="fp32", device="cpu", max_model_len=None)
    decoder = FusedDecoder(loaded.hf, 512, "pytorch")
    decoder.allocate(torch.zeros(1024), PROBE_BLOCKS, PROBE_ROWS)
    right = decoder.step
    decoder.step = lambda inputs: right(inputs).index_fill(1, torch.tensor([3]), value)  # type: ignore[method-assign]
    with pytest.raises(ModelRefused, match="disagrees"):
        probe(loaded.hf, decoder, loaded.dtype)
