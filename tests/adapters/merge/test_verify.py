"""How a merged model is looked at: in float32, with the memory of its weights as they are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.errors import MergeFailed
from manylora.adapters.merge.verify import load_model, random_prompt_logits
from manylora.server.memory_budget import verification_dtype
from tests.support.tiny_models import FAMILIES, costly, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("family", costly(sorted(FAMILIES), fused=False))
def test_weights_in_16_bits_compute_like_float32(tmp_path: Path, family: str) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "whole", family))
    whole.bfloat16().save_pretrained(tmp_path / "half")
    model = load_model(tmp_path / "half", torch.float32)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    found, wanted = random_prompt_logits(model), random_prompt_logits(wide)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("room", "dtype"), [(10_000, torch.float32), (3_000, torch.bfloat16), (1_000, None)])
def test_the_dtype_that_there_is_memory_for(
    room: int, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.server.memory_budget.available_bytes", lambda _: room)
    if dtype is not None:
        assert verification_dtype(1000, 4000) == dtype
        return
    with pytest.raises(MergeFailed, match="free some, or leave the comparison out"):
        verification_dtype(1000, 4000)
