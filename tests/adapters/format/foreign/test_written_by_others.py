"""Files that llama.cpp's and MLX-LM's own code wrote: see fixtures/README.md for how they were made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.adapters import lora_config, lora_tensors
from tests.support.foreign_adapters import ALL_TARGETS, converted, read, tiny_base, written

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "gpt_neox"])
def test_llama_cpp(tmp_path: Path, family: str) -> None:
    base = tiny_base(family, layers=1)
    config = lora_config(rank=2, alpha=6, targets=ALL_TARGETS[family])
    expected = lora_tensors(base, config, seed=5)
    (tmp_path / "in").mkdir()
    shutil.copy(FIXTURES / f"{family}.gguf", tmp_path / "in")
    converted(tmp_path / "in", tmp_path / "out", base)
    found = written(tmp_path / "out")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor.to(found[key].dtype)), key
    assert {delta.scaling for delta in read(tmp_path / "out", base).delta.values()} == {3.0}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx(tmp_path: Path, kind: str) -> None:
    """What MLX computed, computed from what was read."""
    base = tiny_base("llama")
    converted(FIXTURES / f"mlx-{kind}", tmp_path / "out", base)
    artifact, seen = read(tmp_path / "out", base), load_file(FIXTURES / f"mlx-{kind}" / "seen.safetensors")
    assert artifact.kind == ("LORA+DORA" if kind == "dora" else "LORA")
    assert len(artifact.delta) == 2
    for name, delta in artifact.delta.items():
        weight, x, y = (seen[f"{name}.{part}"] for part in ("weight", "x", "y"))
        whole = weight + delta.scaled_b() @ delta.a
        if delta.magnitude is not None:
            whole = whole * (delta.magnitude / whole.norm(dim=1))[:, None]
        torch.testing.assert_close(x @ whole.T, y, rtol=1e-5, atol=1e-5)
