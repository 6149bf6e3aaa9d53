"""The configuration: the same from flags and YAML, unknown keys refused, combinations judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.options.option import flag_of, option_of
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import load_config, to_yaml
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.reference import page
from tests.support.paths import ROOT

NEEDED = {"train_path": "d.jsonl", "output_dir": "out"}
DOCS = ROOT / "docs" / "training-options.md"


def test_defaults() -> None:
    config = load_config(NEEDED)
    assert config == TrainConfig(train_path=Path("d.jsonl"), output_dir=Path("out"))
    assert (config.lora_r, config.alpha, config.rate) == (16, 32.0, 2e-4)
    assert config.target_modules == ("all-linear",)
    assert config.batch_size * config.gradient_accumulation_steps <= 16
    assert load_config({**NEEDED, "lora_r": "4"}).alpha == 8.0


def test_flags_are_text_and_beat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train_path: a.jsonl\nlearning_rate: 1e-3\nlora_r: 8\nrank_pattern: {down_proj: 32}\n")
    flags = {
        "output_dir": "out",
        "lora_r": "4",
        "use_dora": True,
        "target_modules": ["q_proj,v_proj", "down_proj"],
        "alpha_pattern": ["layers.0.*q_proj=4", "v_proj=8.5"],
        "sample_prompts": ["One, two", "three"],
    }
    config = load_config(flags, file)
    assert (config.lora_r, config.learning_rate, config.use_dora) == (4, 1e-3, True)
    assert config.target_modules == ("q_proj", "v_proj", "down_proj")
    assert config.alpha_pattern == {"layers.0.*q_proj": 4.0, "v_proj": 8.5}
    assert config.rank_pattern == {"down_proj": 32}
    assert config.sample_prompts == ("One, two", "three")


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config(
        {
            **NEEDED,
            "init": "pissa_niter_4",
            "rank_pattern": ["q_proj=8"],
            "warmup": "10",
            "sample_prompts": "héé",
        }
    )
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config({}, file) == config


def said(flags: dict[str, Any], file: Path | None = None) -> str:
    with pytest.raises(TrainingConfigError) as caught:
        load_config(flags, file)
    return str(caught.value)


def test_every_fault_and_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora_r: 0\ndtype: fp16\n")
    lines = said({"learning_rate": "fast", "rank_pattern": ["q_proj"], "train_path": "x"}, file).splitlines()
    assert lines[0] == f"{file}: dtype: must be 'auto', 'bf16' or 'fp32' (got 'fp16')"
    assert lines[1].startswith("--learning-rate: must be a valid number")
    assert lines[2].startswith(f"{file}: lora_r: must be greater than or equal to 1")
    assert lines[3] == "--rank-pattern: must be PATTERN=NUMBER, not 'q_proj' (got ['q_proj'])"
    assert lines[4] == "--output-dir is required"
    assert len(lines) == 5


def test_unknown_keys(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora_rank: 4\nmax_seq_length: 10\nlearnin_rate: 1\n")
    assert said(NEEDED, file).splitlines() == [
        f"{file}: lora_rank: no such key (did you mean lora_r?)",
        f"{file}: max_seq_length: no such key (did you mean max_length?)",
        f"{file}: learnin_rate: no such key (did you mean learning_rate?)",
    ]


@pytest.mark.parametrize("content", ["- a\n", "x: [\n", "just text\n"])
def test_files_that_are_no_mapping(content: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert str(file) in said(NEEDED, file)
    assert "No such file" in said(NEEDED, tmp_path / "none.yaml")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an init nobody knows": ({"init": "loftq"}, "must be default, gaussian, olora"),
    "odd rank": ({"init": "orthogonal", "lora_r": 5}, "init: orthogonal needs even ranks, not 5"),
    "olora and a head": ({"init": "olora", "modules_to_save": "lm_head"}, "not work with modules_to_save"),
    "pissa and DoRA": ({"init": "pissa", "use_dora": True}, "not work with use_dora"),
    "pissa and nf4": ({"init": "pissa_niter_4", "quantization": "nf4"}, "not work with quantization"),
    "pissa in bf16": ({"init": "pissa", "dtype": "bf16"}, "must be subtracted in fp32"),
    "DPO and olora": ({"init": "olora", "task": "dpo"}, "reference model would be the changed base"),
    "packing preferences": ({"packing": True, "task": "dpo"}, "packing: only with task sft"),
    "samples of a classifier": ({"sample_prompts": "x", "task": "classification"}, "writes no answers"),
    "samples of an embedder": ({"sample_prompts": "x", "task": "embedding"}, "embeds writes no answers"),
    "pooling of answers": ({"embed_pooling": "mean"}, "only with task embedding, not sft"),
    "a head of an embedder": ({"modules_to_save": "lm_head", "task": "embedding"}, "lm_head has no part in"),
    "a prompt that embeds": ({"method": "prompt_tuning", "task": "embedding"}, "is for task sft"),
    "a whole model that embeds": ({"method": "full", "task": "embedding"}, "is for task sft, not embedding"),
    "two ways to evaluate": ({"eval_path": "e.jsonl", "eval_split": 0.1}, "either eval_path or eval_split"),
    "stopping blindly": ({"early_stopping_patience": 2, "eval_split": 0}, "needs an evaluation"),
    "beta without DPO": ({"dpo_beta": 0.2}, "dpo-beta: only with task dpo"),
    "preset and name": ({"target_modules": ["mlp", "q_proj"]}, "mlp can't be mixed with other names"),
    "LoRA on the head": ({"target_modules": ["lm_head"]}, "give it in modules_to_save"),
    "LoRA+ with adafactor": ({"loraplus_ratio": 16, "optimizer": "adafactor"}, "has its own step sizes"),
    "name": ({"name": "a b"}, "is not an adapter name"),
    "publish under a bad name": ({"output_dir": "x/a b", "publish": "http://h"}, "give --name"),
    "publish to a path": ({"publish": "ftp://h"}, "--publish"),
    "not a number": ({"learning_rate": "nan"}, "--learning-rate: must be a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    flags, message = REFUSED[name]
    assert message in said({**NEEDED, **flags})


def test_every_option_has_its_reason() -> None:
    for name, field in TrainConfig.model_fields.items():
        assert option_of(field).why, name
        assert f"`{flag_of(name)}" in page()


def test_reference_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == page(), "run make docs"
