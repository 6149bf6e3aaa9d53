"""Full fine-tuning: a model of its own, which is served as a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from manylora.adapters.training.errors import GateFailed
from manylora.adapters.training.export import write_model
from tests.support.engine_harness import EngineHarness, hf_greedy
from tests.support.training_runs import config, losses, run


def test_served_as_trained(tiny_llama: Path, tmp_path: Path) -> None:
    result = run(config(tiny_llama, tmp_path, method="full", lora_r=16))
    assert result.adapter == tmp_path / "out" / "model"
    assert losses(result)[-1] < 0.8 * losses(result)[0]
    assert result.baseline.adapter["loss"] < 0.8 * result.baseline.base["loss"]
    assert result.gate.difference < result.gate.allowed < result.gate.effect
    model: Any = AutoModelForCausalLM.from_pretrained(result.adapter)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert all(
        bool((new != old).any()) for new, old in zip(model.parameters(), base.parameters(), strict=True)
    )
    harness = EngineHarness(result.adapter)
    prompt = harness.loaded.tokenizer.encode_chat([{"role": "user", "content": "say 30"}])
    (answer,) = harness.run(harness.sequence(prompt, max_tokens=12))
    assert answer.token_ids == hf_greedy(model.float().eval(), prompt, 12)
    template = AutoTokenizer.from_pretrained(tiny_llama).chat_template
    assert AutoTokenizer.from_pretrained(result.adapter).chat_template == template
    assert "A full fine-tuning of" in (result.adapter / "README.md").read_text()


def test_what_is_on_disk_must_be_what_was_trained(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_a_layer(model: Any, session: Any, directory: Path) -> None:
        write_model(model, session, directory)
        file = directory / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.mlp.down_proj.weight"] *= 0
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr("manylora.adapters.training.run.write_model", lose_a_layer)
    settings = config(tiny_llama, tmp_path, method="full", lora_r=16, max_steps=4)
    with pytest.raises(GateFailed, match="the model on disk is not what was trained"):
        run(settings)
    assert not (settings.output_dir / "model").exists()


def test_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    """From its checkpoint of all weights, to the same bits."""
    options: dict[str, Any] = {
        "method": "full",
        "lora_r": 16,
        "max_steps": 4,
        "save_steps": 2,
        "eval_split": 0,
    }
    settings = config(tiny_llama, tmp_path, **options)
    first = run(settings)
    weights = load_file(first.adapter / "model.safetensors")
    (settings.output_dir / "checkpoints" / "checkpoint-4" / "complete").unlink()
    again = load_file(run(settings, resume=True).adapter / "model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.parametrize(
    "options",
    [{"lora_r": 4}, {"use_dora": True}, {"quantization": "nf4"}, {"publish": "http://x"}, {"dtype": "bf16"}],
    ids=str,
)
def test_what_only_adapters_have(options: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        config(tiny_llama, tmp_path, method="full", **{"lora_r": 16, **options})


def test_its_own_learning_rate(tiny_llama: Path, tmp_path: Path) -> None:
    rates = [
        config(tiny_llama, tmp_path, method=method, lora_r=16, learning_rate=None).rate
        for method in ("lora", "full")
    ]
    assert rates == [2e-4, 2e-5]
