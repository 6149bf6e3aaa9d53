"""LoRA that was put on weights by their names (target_parameters) equals PEFT's, or is refused by name."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from manylora.adapters.errors import ArtifactError
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import Peft, assert_logits_match
from tests.support.tiny_models import tiny_model

ASKED: dict[str, dict[str, Any]] = {
    "one": {"target_parameters": ["q_proj.weight"], "target_modules": []},
    "beside modules": {"target_parameters": ["up_proj.weight", "0.mlp.down_proj.weight"]},
    "patterns": {
        "target_parameters": ["q_proj.weight", "v_proj.weight"], "target_modules": ["o_proj"],
        "rank_pattern": {"q_proj.weight": 3, "v_proj": 5, "o_proj": 2}, "alpha_pattern": {"v_proj.weight": 3},
        "use_rslora": True,
    },
    "full names": {"target_parameters": ["model.layers.1.self_attn.k_proj.weight"], "target_modules": []},
}  # fmt: skip


def make(path: Path, model: Path, options: dict[str, Any]) -> Path:
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on targets
        get_peft_model(base, config).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path / "model", family)
    paths = {name: make(tmp_path / name, model, options) for name, options in ASKED.items()}
    harness = EngineHarness(model)
    prompt = prompt_of(11)
    rows = [harness.sequence(prompt, (harness.load(path), 1.0), max_tokens=3) for path in paths.values()]
    with recorded_logits() as logits:
        answers = harness.run(*rows, harness.sequence(prompt, max_tokens=3))
    base = Peft(model, {}).logits(prompt, None)[-1]
    for (name, path), row, answer in zip(paths.items(), rows, answers, strict=False):
        ids = [*prompt, *answer.token_ids[:-1]]
        expected = Peft(model, {name: path}).logits(ids, name)[len(prompt) - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=name)
        assert float((expected[0] - base).abs().max()) > 0.05 * float(base.abs().max())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"target_parameters": ["mlp.experts.gate_up_proj"]}, "names 'mlp.experts.gate_up_proj': only"),
    ("qwen3_moe", {"target_parameters": ["mlp.gate.weight"]}, "names 'mlp.gate.weight': only"),
    ("llama", {"target_parameters": ["input_layernorm.weight"]}, "names 'input_layernorm.weight': only"),
    ("llama", {"target_parameters": ["embed_tokens.weight"]}, "names 'embed_tokens.weight': only"),
    ("llama", {"target_parameters": ["lm_head.weight"]}, "names 'lm_head.weight': only"),
    ("llama", {"target_parameters": ["weight"]}, "names 'weight': only"),
    ("llama", {"target_parameters": [""]}, "target_parameters should be"),
    ("llama", {"target_parameters": {"q_proj.weight": 1}}, "target_parameters should be"),
    ("llama", {"target_parameters": ["x" * 100_000]}, "names 'xx.*: only"),
    ("llama", {"target_parameters": [str(i) for i in range(10**4)]}, "has 10000 entries"),
    ("llama", {"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]}, "both select"),
    ("llama", {"target_parameters": ["q_proj.weight"], "use_dora": True}, "use_dora cannot be used with"),
    ("llama", {"target_parameters": ["q_proj.weight"], "bias": "all"}, "bias cannot be used with"),
    ("gpt2", {"target_parameters": ["c_attn.weight"]}, "weight of a Conv1D: target the layer"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options", "expected"), REFUSED)
def test_what_is_not_served_is_refused_by_name(
    tmp_path: Path, family: str, options: dict[str, Any], expected: str
) -> None:
    model = tiny_model(tmp_path / "model", family)
    plain = ["c_fc"] if family == "gpt2" else ["v_proj"]
    path = write_adapter(tmp_path / "a", model, targets=plain)
    config = path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **options}))
    with pytest.raises(ArtifactError) as error:
        EngineHarness(model).load(path)
    assert any(re.search(expected, fault) for fault in error.value.faults), error.value.faults
