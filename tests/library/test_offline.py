"""``manylora.compose``, ``merge``, ``estimate`` and ``compare`` as programs call them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import manylora
from manylora.adapters.errors import AdapterError
from tests.support.adapters import write_adapter


@pytest.fixture
def adapters(tiny_llama: Path, tmp_path: Path) -> list[Path]:
    return [write_adapter(tmp_path / name, tiny_llama, rank=4, seed=seed) for seed, name in enumerate("ab")]


def test_composing(tiny_llama: Path, adapters: list[Path], tmp_path: Path) -> None:
    weighted = {adapters[0]: 0.7, adapters[1]: 0.3}
    made = manylora.compose(weighted, tmp_path / "out", base=str(tiny_llama), data_dir=tmp_path / "data")
    assert made.rank == 8
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    with pytest.raises(AdapterError, match="already"):
        manylora.compose(weighted, tmp_path / "out", base=str(tiny_llama), data_dir=tmp_path / "data")


def test_merging(tiny_llama: Path, adapters: list[Path], tmp_path: Path) -> None:
    made = manylora.merge(adapters, tmp_path / "out", base=str(tiny_llama), data_dir=tmp_path / "data")
    assert made.verification is not None
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-3)


def test_estimating(tiny_llama: Path) -> None:
    (lora, full) = manylora.estimate(str(tiny_llama), methods=["lora", "full"], r=4, max_length=64)
    assert 0 < lora.optimizer < full.optimizer
    with pytest.raises(AdapterError):
        manylora.estimate(str(tiny_llama / "nowhere"))


@pytest.mark.slow
def test_comparing(tiny_llama: Path, adapters: list[Path], tmp_path: Path) -> None:
    found = manylora.compare(
        [tiny_llama.name, "a"],
        model=str(tiny_llama),
        adapters={"a": adapters[0]},
        data_dir=tmp_path,
        prompt=["Hello"],
        max_tokens=4,
    )
    assert found["object"] == "comparison"
