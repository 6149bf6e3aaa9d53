"""The original model, read matrix by matrix, and what it finds wrong about parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.fidelity.precision import widened
from manylora.server.errors import ModelRefused
from manylora.server.model.base import load_base
from manylora.server.model.parallel import starting
from manylora.server.model.parallel.parts.loading import Share, load_share
from manylora.server.model.parallel.parts.streamed import streamed
from manylora.server.model.parallel.setup import RankSetup
from manylora.server.options.settings import Settings
from tests.support.adapter_set import prompt_of
from tests.support.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "llama-untied-bias", "phi3", "gemma3"])
@torch.no_grad()
def test_one_matrix_at_a_time(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path, family)
    whole, ids = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype), torch.tensor([prompt_of(20)])
    stored = StoredModel(directory)
    with streamed(stored.skeleton, stored.config, stored, dtype=dtype, max_len=512) as model:
        for _ in range(2):
            assert torch.equal(model(ids).logits, whole(ids).logits)
        with widened(model), widened(whole):
            assert torch.equal(model(ids).logits, whole(ids).logits)
        there = [p for p in model.parameters() if p.dim() > 1 and p.untyped_storage().nbytes() > 8]
        assert len(there) == 1, "of all but the last that ran"
    assert all(p.untyped_storage().nbytes() <= 8 for p in model.parameters() if p.dim() > 1)


@pytest.mark.sweep
@pytest.mark.slow
def test_a_wrong_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases that each rank adds, as if they were parts of a sum."""
    model = tiny_model(tmp_path / "model", "llama-untied-bias")
    settings = Settings(
        device="cpu", dtype="fp32", tensor_parallel_size=2, kv_cache_memory=1 << 24, adapter_memory=1 << 24,
        data_dir=tmp_path,
    )  # fmt: skip

    def wrong(setup: RankSetup) -> Share:
        share = load_share(setup)
        for layer in share.hf.model.layers:
            layer.mlp.down_proj.bias.mul_(2)
        return share

    monkeypatch.setattr(starting, "load_share", wrong)
    with pytest.raises(ModelRefused, match="the fused decoder disagrees with LlamaForCausalLM"):
        load_base(settings, model)
