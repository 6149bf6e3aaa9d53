"""Adapters with virtual tokens as PEFT saves them are read; what is wrong with one is refused by name."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel, CacheShape
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from tests.support.adapters import base_of_directory, lora_config, write_artifact
from tests.support.soft_prompts import TOKENS, model_for_prefixes, write_soft_prompt, write_soft_prompts

LIMITS = Limits(max_rank=64, max_bytes=1 << 22, max_virtual_tokens=500)
KINDS = {
    "prompt": "PROMPT_TUNING",
    "p": "P_TUNING",
    "p-lstm": "P_TUNING",
    "cpt": "CPT",
    "multitask": "MULTITASK_PROMPT_TUNING",
    "prefix": "PREFIX_TUNING",
    "prefix-mlp": "PREFIX_TUNING",
    "cartridge": "CARTRIDGE",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_for_prefixes(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def base(model: Path) -> BaseModel:
    return base_of_directory(model)


@pytest.fixture(scope="module")
def saved(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_soft_prompts(tmp_path_factory.mktemp("saved"), model)


@pytest.mark.parametrize("name", TOKENS)
def test_what_peft_saves_is_read(saved: dict[str, Path], base: BaseModel, name: str) -> None:
    artifact = read_artifact(saved[name], base, LIMITS)
    assert artifact.kind == KINDS[name]
    assert artifact.prompt is not None
    assert artifact.prompt.tokens == TOKENS[name]
    assert artifact.prompt.in_cache == (name in ("prefix", "prefix-mlp", "cartridge"))
    assert (artifact.rank, dict(artifact.delta), artifact.vocabulary) == (0, {}, None)


@pytest.mark.parametrize("name", ["prompt", "p", "prefix", "cartridge", "multitask"])
def test_a_classifier_that_peft_saves_is_read(
    tmp_path: Path, model: Path, base: BaseModel, name: str
) -> None:
    path = write_soft_prompt(tmp_path / name, model, name, labels=["bad", "fair", "good"])
    artifact = read_artifact(path, base, LIMITS)
    assert artifact.kind == f"{KINDS[name]}+CLASSES"
    assert artifact.prompt is not None
    assert artifact.classes is not None
    assert artifact.classes.labels == ("bad", "fair", "good")


def test_the_cache_of_a_base_is_what_its_config_says(tmp_path: Path) -> None:
    shapes = {
        "llama": CacheShape(2, 2, 16),
        "qwen3": CacheShape(2, 2, 32),
        "gpt2": CacheShape(2, 4, 16),
        "gpt_neox": CacheShape(2, 4, 16),
    }
    for family, shape in shapes.items():
        assert base_of_directory(model_for_prefixes(tmp_path / family, family)).cache == shape


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("prompt", {"num_virtual_tokens": 0}, "num_virtual_tokens should be a positive integer"),
    ("prompt", {"num_virtual_tokens": -5}, "num_virtual_tokens should be a positive integer"),
    ("prompt", {"num_virtual_tokens": None}, "num_virtual_tokens should be a positive integer"),
    ("prompt", {"num_virtual_tokens": True}, "num_virtual_tokens should be a positive integer"),
    ("prompt", {"num_virtual_tokens": 10**9}, "num_virtual_tokens should be a positive integer"),
    ("prefix", {"num_virtual_tokens": 10**30}, "num_virtual_tokens should be a positive integer"),
    ("prompt", {"num_virtual_tokens": 1e300}, "num_virtual_tokens should be a positive integer"),
    ("prompt", {"num_virtual_tokens": [5]}, "num_virtual_tokens should be a positive integer"),
    ("cartridge", {"num_virtual_tokens": 501}, "num_virtual_tokens=501 leaves no room for a text"),
    ("prompt", {"num_virtual_tokens": 6}, "size mismatch for 'prompt_embeddings'"),
    ("prompt", {"token_dim": 32}, "token_dim=32 does not fit the base, which has 64"),
    ("prompt", {"token_dim": 10**9}, "token_dim should be a positive integer"),
    ("prefix", {"token_dim": 64}, "token_dim=64 does not fit the base, which has 32"),
    ("prefix", {"num_layers": 3}, "num_layers=3 does not fit the base, which has 2"),
    ("cartridge", {"num_attention_heads": 4}, "num_attention_heads=4 does not fit the base, which has 2"),
    ("p", {"num_transformer_submodules": 2}, "num_transformer_submodules=2 is not served: only 1 is"),
    ("multitask", {"num_tasks": 2}, "num_tasks=2 is not served: only 1 is"),
    ("multitask", {"num_tasks": 10**12}, "num_tasks=1000000000000 is not served"),
    ("multitask", {"num_ranks": 10**9}, "num_ranks should be a positive integer"),
    ("multitask", {"num_ranks": 4}, "size mismatch for 'prefix_task_cols'"),
    ("cpt", {"cpt_token_ids": [1, 2]}, "num_virtual_tokens=3, but cpt_token_ids names 2 tokens"),
    ("cpt", {"cpt_token_ids": "abc"}, "num_virtual_tokens should be a positive integer"),
    ("cpt", {"task_type": "SEQ_CLS"}, "CPT is for task_type CAUSAL_LM only"),
    ("prompt", {"task_type": None}, "task_type is missing"),
    ("prompt", {"task_type": "SEQ_2_SEQ_LM"}, "task_type 'SEQ_2_SEQ_LM' is not served"),
    ("prompt", {"modules_to_save": ["lm_head"]}, "modules_to_save is not served beside virtual tokens"),
    ("prompt", {"task_type": "SEQ_CLS"}, "a classification adapter has its head in one of"),
    ("prompt", {"r": 8}, "'r' is not an option this server knows"),
    ("prompt", {"target_modules": ["q_proj"]}, "'target_modules' is not an option this server knows"),
    ("prompt", {"peft_type": "PREFIX_TUNING"}, "num_attention_heads=4 does not fit the base"),
    ("prompt", {"peft_type": "MULTITASK_PROMPT_TUNING"}, "missing tensors: 'prefix_task_cols'"),
    ("multitask", {"peft_type": "PROMPT_TUNING"}, "the virtual tokens of another kind of adapter"),
    ("prompt", {"peft_type": "LORA"}, "target_modules is missing or empty"),
]


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_hostile_config_is_refused(
    saved: dict[str, Path], base: BaseModel, tmp_path: Path, case: tuple[str, dict[str, Any], str]
) -> None:
    name, change, reason = case
    faults = faults_of(changed(saved[name], tmp_path / "new", config=lambda config: config | change), base)
    assert any(reason in fault for fault in faults), faults


Tensors = dict[str, torch.Tensor]
TENSORS: list[tuple[str, Callable[[Tensors], Tensors], str]] = [
    ("prompt", lambda _: {}, "missing tensors: 'prompt_embeddings'"),
    ("prompt", lambda t: t | {"more": torch.ones(1)}, "unexpected tensors 'more'"),
    ("prompt", lambda t: {"prompt_embeddings": t["prompt_embeddings"].T.contiguous()}, "size mismatch"),
    ("prompt", lambda t: {"prompt_embeddings": t["prompt_embeddings"][:0]}, "size mismatch"),
    ("prompt", lambda t: {"prompt_embeddings": t["prompt_embeddings"].flatten()}, "size mismatch"),
    ("prompt", lambda t: {"prompt_embeddings": t["prompt_embeddings"] * torch.nan}, "NaN or infinite values"),
    ("prefix", lambda t: {"prompt_embeddings": t["prompt_embeddings"] * torch.inf}, "NaN or infinite values"),
    ("prompt", lambda t: {"prompt_embeddings": t["prompt_embeddings"].long()}, "tensors of I64"),
    ("prompt", lambda t: t | {"base_model.score.weight": torch.ones(2, 64)}, "unexpected tensors"),
    ("prefix", lambda t: t | {"prefix_task_rows": torch.ones(1, 2, 64)}, "unexpected tensors"),
    ("multitask", lambda t: {k: v for k, v in t.items() if k != "prefix_task_rows"}, "'prefix_task_rows'"),
    ("multitask", lambda t: {k: v * 1e30 for k, v in t.items()}, "has values that are not finite"),
]


@pytest.mark.parametrize("case", TENSORS, ids=lambda case: f"{case[0]}-{case[2]}")
def test_hostile_tensors_are_refused(
    saved: dict[str, Path],
    base: BaseModel,
    tmp_path: Path,
    case: tuple[str, Callable[[Tensors], Tensors], str],
) -> None:
    name, change, reason = case
    faults = faults_of(changed(saved[name], tmp_path / "new", tensors=change), base)
    assert any(reason in fault for fault in faults), faults


def test_huge_numbers_cost_nothing(saved: dict[str, Path], base: BaseModel, tmp_path: Path) -> None:
    """What the config promises is compared with the file before anything of its size is made."""
    limits = replace(LIMITS, max_virtual_tokens=1 << 20)
    path = changed(
        saved["multitask"],
        tmp_path / "new",
        config=lambda c: c | {"num_virtual_tokens": 65536, "num_ranks": 65536},
    )
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="size mismatch"):
        read_artifact(path, base, limits)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_bases_without_a_place_for_them(saved: dict[str, Path], base: BaseModel) -> None:
    bare = replace(base, cache=None, vocabulary=None)
    assert "no one shape of keys and values" in faults_of(saved["prefix"], bare)[0]
    assert "not served on the embeddings of this base" in faults_of(saved["prompt"], bare)[0]


def test_virtual_tokens_beside_lora_are_no_part_of_it(tmp_path: Path, base: BaseModel) -> None:
    path = write_artifact(tmp_path / "a", lora_config(), {"prompt_embeddings": torch.ones(5, 64)})
    assert any("the virtual tokens of another kind of adapter" in fault for fault in faults_of(path, base))


def test_numbers_as_other_tools_write_them(saved: dict[str, Path], base: BaseModel, tmp_path: Path) -> None:
    sizes = {"num_virtual_tokens": "5", "token_dim": 64.0, "num_transformer_submodules": None}
    path = changed(saved["prompt"], tmp_path / "new", config=lambda config: config | sizes)
    artifact = read_artifact(path, base, LIMITS)
    assert artifact.prompt is not None
    assert artifact.prompt.tokens == 5


def test_the_prompt_of_the_task_is_multiplied_in(saved: dict[str, Path], base: BaseModel) -> None:
    tensors = load_file(saved["multitask"] / WEIGHTS_NAME)
    task = tensors["prefix_task_cols"][0] @ tensors["prefix_task_rows"][0]
    found: Artifact = read_artifact(saved["multitask"], base, LIMITS)
    assert found.prompt is not None
    assert torch.equal(found.prompt.values, tensors["prompt_embeddings"] * task)


def faults_of(path: Path, base: BaseModel) -> list[str]:
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path, base, LIMITS)
    return list(caught.value.faults)


def changed(
    path: Path,
    into: Path,
    *,
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    tensors: Callable[[Tensors], Tensors] = dict,
) -> Path:
    """A copy of an artifact with another config or other tensors."""
    into.mkdir()
    (into / CONFIG_NAME).write_text(json.dumps(config(json.loads((path / CONFIG_NAME).read_text()))))
    save_file(tensors(load_file(path / WEIGHTS_NAME)), into / WEIGHTS_NAME, metadata={"format": "pt"})
    return into
