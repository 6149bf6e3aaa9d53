"""Adapters of other tools in one mixed batch: each row equals PEFT with the adapter that it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import base_of_directory, write_adapter, write_artifact
from tests.support.engine_harness import EngineHarness
from tests.support.foreign_adapters import (
    ALL_TARGETS,
    PREFIX,
    Tensors,
    converted,
    llama_cpp_tensors,
    renamed,
    write_gguf,
    write_mlx,
)
from tests.support.peft_oracle import Peft, assert_logits_match
from tests.support.tiny_models import tiny_model

LENGTHS = (9, 17, 3, 12, 21)


def megatron(tensors: Tensors) -> Tensors:
    """q and v of every block of a Llama as Megatron's fused layer has them: by group, k unchanged."""
    found = {}
    for block in (0, 1):
        path = f"{PREFIX}model.layers.{block}.self_attn"
        a_q, b_q = (tensors[f"{path}.q_proj.lora_{p}.weight"] for p in "AB")
        a_v, b_v = (tensors[f"{path}.v_proj.lora_{p}.weight"] for p in "AB")
        rank = a_q.shape[0]
        rows = []
        for group in range(2):
            rows.append(torch.cat([b_q[group * 32 : group * 32 + 32], torch.zeros(32, rank)], 1))
            rows.append(torch.zeros(16, 2 * rank))
            rows.append(torch.cat([torch.zeros(16, rank), b_v[group * 16 : group * 16 + 16]], 1))
        name = f"model.decoder.layers.{block}.self_attention.linear_qkv.adapter"
        found[f"{name}.linear_in.weight"] = torch.cat([a_q, a_v])
        found[f"{name}.linear_out.weight"] = torch.cat(rows)
    return found


def write_all(tmp_path: Path, model: Path, family: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """Adapters as other tools write them, and PEFT's that do the same, by name."""
    base = base_of_directory(model)
    foreign: dict[str, Path] = {}
    peft: dict[str, Path] = {}
    for seed, tool in enumerate(("mlx", "spelled", "kohya")):
        peft[tool] = write_adapter(
            tmp_path / f"peft-{tool}", model, rank=4, alpha=6, targets=ALL_TARGETS[family], seed=seed
        )
        tensors = load_file(peft[tool] / "adapter_model.safetensors")
        place = tmp_path / tool
        if tool == "mlx":
            write_mlx(place, tensors, rank=4, scale=1.5, layers=2)
        elif tool == "spelled":
            config = (peft[tool] / "adapter_config.json").read_bytes()
            write_artifact(
                place, {}, renamed(tensors, lambda key: f"module.{key.replace('.weight', '.x.weight')}")
            )
            (place / "adapter_config.json").write_bytes(config)
        else:
            flat = renamed(
                tensors,
                lambda key: (
                    key.removeprefix(PREFIX).replace("lora_A", "lora_down").replace("lora_B", "lora_up")
                ),
            )
            paths = {key.rsplit(".lora_", 1)[0] for key in flat}
            write_artifact(place, {}, flat | {f"{path}.alpha": torch.tensor(6.0) for path in paths})
            (place / "adapter_config.json").unlink()
        foreign[tool] = place
    if family == "llama":
        _add_llama(tmp_path, model, foreign, peft)
    for tool, place in foreign.items():
        converted(place, tmp_path / f"converted-{tool}", base)
    return {tool: tmp_path / f"converted-{tool}" for tool in foreign}, peft


def _add_llama(tmp_path: Path, model: Path, foreign: dict[str, Path], peft: dict[str, Path]) -> None:
    for seed, tool in ((7, "gguf"), (8, "megatron")):
        targets = ALL_TARGETS["llama"] if tool == "gguf" else ["q_proj", "v_proj"]
        peft[tool] = write_adapter(
            tmp_path / f"peft-{tool}", model, rank=4, alpha=6, targets=targets, seed=seed
        )
        tensors = load_file(peft[tool] / "adapter_model.safetensors")
        foreign[tool] = tmp_path / tool
        if tool == "gguf":
            write_gguf(tmp_path / tool / "a.gguf", llama_cpp_tensors(tensors, 4, 2))
        else:
            config = {"peft_type": "LORA", "r": 8, "lora_alpha": 12, "target_modules": ["linear_qkv"]}
            write_artifact(tmp_path / tool, config, megatron(tensors))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox"])
def test_a_mixed_batch_equals_peft_one_by_one(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path / "model", family)
    foreign, peft = write_all(tmp_path, model, family)
    harness = EngineHarness(model, generic=family not in ("llama", "qwen2"))
    names = [None, *foreign]
    rows = [
        harness.sequence(
            prompt_of(length, length),
            *([] if name is None else [(harness.load(foreign[name]), 1.0)]),
            max_tokens=4,
        )
        for name, length in zip(names, (*LENGTHS, 6), strict=False)
    ]
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    oracle = Peft(model, peft)
    for name, row, answer in zip(names, rows, answers, strict=True):
        ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
        expected = oracle.logits(ids, name)[row.num_prompt_tokens - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected, name=str(name))
