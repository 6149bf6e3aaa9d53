"""Adapters that change the embeddings or the output head: what is read, and every fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.format.base import BaseModel
from tests.support.adapters import write_artifact
from tests.support.artifact_cases import Q_B, Tensors, valid
from tests.support.vocabulary_cases import BIASED, EMBEDDING, HEAD, TIED, UNTIED, D, V, faults, load, rand


def write(tmp_path: Path, options: dict[str, Any], tensors: Tensors, drop: str = "") -> Path:
    config, plain = valid()
    both = {**plain, **tensors}
    return write_artifact(tmp_path, config | options, {k: v for k, v in both.items() if k != drop})


LORA = {"target_modules": ["q_proj", "v_proj", "embed_tokens", "lm_head"]}
LORA_TENSORS = {
    f"{EMBEDDING}lora_embedding_A": rand(4, V), f"{EMBEDDING}lora_embedding_B": rand(D, 4),
    f"{HEAD}lora_A.weight": rand(4, D), f"{HEAD}lora_B.weight": rand(V, 4),
}  # fmt: skip
SAVED = {"modules_to_save": ["embed_tokens", "lm_head"]}
SAVED_TENSORS = {f"{EMBEDDING}weight": rand(V, D), f"{HEAD}weight": rand(V, D) + 1}
TOKENS = {"trainable_token_indices": [3, 1]}
DELTA = "token_adapter.trainable_tokens_delta"
TOKENS_TENSORS = {f"{EMBEDDING}{DELTA}": rand(2, D)}


def test_lora_on_both_tables(tmp_path: Path) -> None:
    found = load(write(tmp_path, {**LORA, "alpha_pattern": {"lm_head": 6}}, LORA_TENSORS)).vocabulary
    assert found is not None
    assert found.size == V
    assert found.embedding is not None
    assert found.head is not None
    assert found.embedding.a is not None
    assert found.head.b is not None
    assert torch.equal(found.embedding.a, LORA_TENSORS[f"{EMBEDDING}lora_embedding_A"])
    assert torch.equal(found.head.b, LORA_TENSORS[f"{HEAD}lora_B.weight"])
    assert (found.embedding.scaling, found.head.scaling) == (4.0, 1.5)


def test_whole_tables_of_a_resized_model(tmp_path: Path) -> None:
    grown = {f"{EMBEDDING}weight": rand(V + 2, D), f"{HEAD}weight": rand(V + 2, D)}
    artifact = load(write(tmp_path, SAVED, grown))
    assert artifact.vocabulary is not None
    assert artifact.vocabulary.size == V + 2
    assert artifact.kind == "LORA+VOCABULARY"


@pytest.mark.parametrize(("base", "shared"), [(TIED, True), (UNTIED, False)])
def test_trained_tokens_reach_a_tied_head(tmp_path: Path, base: BaseModel, shared: bool) -> None:
    found = load(write(tmp_path, TOKENS, TOKENS_TENSORS), base).vocabulary
    assert found is not None
    assert found.embedding is not None
    assert found.embedding.tokens == (3, 1)
    assert (found.head is not None) == shared


def test_an_adapter_may_change_the_tables_alone(tmp_path: Path) -> None:
    config, _ = valid()
    only = config | {"target_modules": ["embed_tokens"]}
    tensors = {k: v for k, v in LORA_TENSORS.items() if "embedding" in k}
    artifact = load(write_artifact(tmp_path, only, tensors))
    assert not artifact.delta
    assert artifact.vocabulary is not None
    assert artifact.vocabulary.head is None
    assert artifact.rank == artifact.vocabulary.rank == LORA_TENSORS[f"{EMBEDDING}lora_embedding_A"].shape[0]


def test_all_linear_leaves_the_head_alone(tmp_path: Path) -> None:
    config, tensors = valid()
    config |= {"target_modules": "all-linear", "exclude_modules": ["up_proj"]}
    assert load(write_artifact(tmp_path, config, tensors)).vocabulary is None


GROWN_TOKENS = {"trainable_token_indices": [V]}
CASES: list[tuple[BaseModel, dict[str, Any], Tensors, str, str]] = [
    (UNTIED, LORA, LORA_TENSORS, f"{HEAD}lora_B.weight", "missing tensors: .*lm_head.lora_B"),
    (UNTIED, LORA, LORA_TENSORS, f"{EMBEDDING}lora_embedding_A", "missing tensors: .*lora_embedding_A"),
    (UNTIED, SAVED, SAVED_TENSORS, f"{HEAD}weight", "missing tensors: .*lm_head.weight"),
    (UNTIED, TOKENS, {}, "", "missing tensors: .*trainable_tokens_delta"),
    (UNTIED, TOKENS, {f"{EMBEDDING}{DELTA}": rand(3, D)}, "", r"size mismatch .* has \[3, 8\], \[2, 8\] is"),
    (UNTIED, SAVED, {**SAVED_TENSORS, f"{HEAD}weight": rand(V, 5)}, "", "size mismatch .*lm_head.weight"),
    (UNTIED, LORA, {**LORA_TENSORS, f"{HEAD}lora_A.weight": rand(3, D)}, "", "size mismatch .*lora_A"),
    (UNTIED, {"r": 65, **LORA}, {}, "", "rank 65 of 'lm_head' is above the limit of 64"),
    (UNTIED, {}, {f"{HEAD}lora_A.weight": rand(4, D)}, "", "unexpected .*lm_head.lora_A.*does not ch"),
    (UNTIED, {}, {f"{EMBEDDING}lora_embedding_A": rand(4, V)}, "", "unexpected tensors .*embed_tokens"),
    (UNTIED, TOKENS, {**TOKENS_TENSORS, f"{HEAD}{DELTA}": rand(2, D)}, "", "unexpected .*lm_head.tok"),
    (UNTIED, SAVED, {**SAVED_TENSORS, f"{HEAD}weight": rand(V + 1, D)}, "", "have 20 rows and the .*head 21"),
    (UNTIED, SAVED, {k: rand(V - 1, D) for k in SAVED_TENSORS}, "", "19 rows, fewer than the base's 20"),
    (UNTIED, GROWN_TOKENS, {f"{EMBEDDING}{DELTA}": rand(1, D)}, "", "names token 20; the vocabulary has 20"),
    (UNTIED, {"trainable_token_indices": [2, 2]}, TOKENS_TENSORS, "", "holds a token twice"),
    (UNTIED, {"trainable_token_indices": {"wpe": [2]}}, {}, "", "names 'wpe': only embeddings and head"),
    (UNTIED, {"modules_to_save": ["q_proj"]}, {}, "", "selects 'model.layers.0.q_proj'.*only norms"),
    (UNTIED, {"modules_to_save": ["score"]}, {}, "", "names 'score', which is not in the base"),
    (UNTIED, {**LORA, **SAVED}, {**LORA_TENSORS, **SAVED_TENSORS}, "", "target_modules and modules_to_save"),
    (UNTIED, {**TOKENS, **SAVED}, SAVED_TENSORS, "", "modules_to_save and trainable_token_indices both"),
    (UNTIED, {**LORA, "use_dora": True}, LORA_TENSORS, "", "use_dora is not served on embeddings"),
    (UNTIED, {**LORA, "lora_bias": True}, LORA_TENSORS, "", "lora_bias is not served on embeddings"),
    (UNTIED, {**LORA, "alora_invocation_tokens": [1]}, LORA_TENSORS, "", "alora_invocation_tokens cannot"),
    (
        TIED, {"ensure_weight_tying": True, "trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}},
        {}, "", "needs the same trainable_token_indices",
    ),
    (TIED, {**TOKENS, "modules_to_save": ["lm_head"]}, {}, "", "not served beside other changes to a tied"),
    (
        TIED, {**SAVED, "ensure_weight_tying": True}, SAVED_TENSORS, "", "are one tensor in PEFT, and differ",
    ),
    (BIASED, SAVED, SAVED_TENSORS, "", "has a bias: only LoRA is served on it"),
    (UNTIED, SAVED, {**SAVED_TENSORS, f"{HEAD}weight": rand(V, D) * torch.inf}, "", "NaN or infinite values"),
    (UNTIED, {"target_modules": ["q_proj", "norm"]}, {}, "", "selects 'model.norm': only linear layers"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "options", "tensors", "drop", "expected"), CASES)
def test_every_fault_is_told(
    tmp_path: Path, base: BaseModel, options: dict[str, Any], tensors: Tensors, *, drop: str, expected: str
) -> None:
    found = faults(write(tmp_path, options, tensors, drop), base)
    assert any(re.search(expected, fault) for fault in found), found


def test_faults_are_reported_together(tmp_path: Path) -> None:
    tensors = {**SAVED_TENSORS, f"{HEAD}weight": rand(V, 5)}
    path = write(tmp_path, {**SAVED, "use_qalora": True}, tensors, drop=Q_B)
    (path / "chat_template.jinja").write_text("{% for %}")
    found = "; ".join(faults(path))
    for part in ("size mismatch", "lm_head.weight", "use_qalora", "missing tensors"):
        assert part in found


def test_tables_of_zeros_do_nothing(tmp_path: Path) -> None:
    config, _ = valid()
    tensors = {f"{EMBEDDING}lora_embedding_A": torch.zeros(4, V), f"{EMBEDDING}lora_embedding_B": rand(D, 4)}
    path = write_artifact(tmp_path, config | {"target_modules": ["embed_tokens"]}, tensors)
    assert "would do nothing" in faults(path)[0]
