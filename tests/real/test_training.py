"""Short runs on the real model: the loss falls, held-out rows improve, and the server answers as trained.

One kind a test, with a handful of rows and steps; what every kind computes is tested on the tiny model in
tests/training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM, PeftModel

from examples.questions import DATA, read_facts
from tests.harness import Harness
from tests.training.making import chat
from tests.training.runs import config, losses, run

pytestmark = pytest.mark.real
SIGNED = "\n- Mina, Larkspur Cycles"
SETTINGS: dict[str, Any] = {
    "max_steps": 4, "batch_size": 4, "eval_split": 0.1, "eval_steps": 100, "save_steps": 100,
    "sample_tokens": 2, "learning_rate": 4e-3, "warmup": 1, "lora_r": 8,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "SFT": {"dtype": "bf16"},
    "OLoRA": {"dtype": "auto", "init": "olora", "learning_rate": 1e-3},
    "QLoRA": {"dtype": "bf16", "quantization": "nf4", "batch_size": 2},
}


def rows() -> list[dict[str, Any]]:
    facts = read_facts(DATA / "support.txt")[:18]
    return [chat(fact.questions[0], "Yes." + SIGNED) for fact in facts]


@pytest.mark.parametrize("kind", KINDS)
def test_short_run(kind: str, real_model_dir: Path, tmp_path: Path) -> None:
    result = run(config(real_model_dir, tmp_path, rows(), **{**SETTINGS, **KINDS[kind]}))
    curve = losses(result)
    assert curve[-1] < 0.7 * curve[0]
    assert result.baseline.adapter["loss"] < 0.7 * result.baseline.base["loss"]
    assert result.gate.difference < result.gate.allowed


def test_served_token_for_token(real_model_dir: Path, tmp_path: Path) -> None:
    """The trainer's own greedy answer in fp32, from plain PEFT, and the server's."""
    result = run(
        config(
            real_model_dir,
            tmp_path,
            rows(),
            **{**SETTINGS, "use_rslora": True, "max_steps": 2, "batch_size": 2},
        )
    )
    harness = Harness(real_model_dir)
    prompt = harness.loaded.tokenizer.encode_chat([{"role": "user", "content": "Do you sell helmets?"}])
    (answer,) = harness.run(harness.sequence(prompt, (harness.load(result.adapter), 1.0), max_tokens=12))
    model = AutoPeftModelForCausalLM.from_pretrained(result.adapter)
    assert isinstance(model, PeftModel)
    model = model.eval().float()
    import torch

    output = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=12, eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    assert answer.token_ids == output[0, len(prompt) :].tolist()
