"""Adapters of kinds LN_TUNING and TRAINABLE_TOKENS: what is read of them, and every fault."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.format.base import BaseModel, TargetModule
from tests.support.adapters import lora_config, write_artifact
from tests.support.artifact_cases import HOSTILE, PREFIX, Q_A, Q_B, Tensors
from tests.support.vocabulary_cases import BIASED, EMBEDDING, HEAD, TIED, UNTIED, D, V, faults, load, rand

NORMS = {
    "model.layers.0.input_layernorm": TargetModule("model.layers.0.input_layernorm", D, D, linear=False),
    "model.layers.1.input_layernorm": TargetModule("model.layers.1.input_layernorm", D, D, linear=False),
    "model.layers.1.k_norm": TargetModule("model.layers.1.k_norm", 4, 4, linear=False),
    "model.norm": TargetModule("model.norm", D, D, bias=True, linear=False),
}
BASE = dataclasses.replace(UNTIED, norms=NORMS, others=UNTIED.others | NORMS.keys() | {"model.odd_norm"})
LAST = "base_model.model.model.norm.ln_tuning_layers."
FIRST = f"{PREFIX}.0.input_layernorm.ln_tuning_layers.weight"
SECOND = f"{PREFIX}.1.input_layernorm.ln_tuning_layers.weight"
KEYS = f"{PREFIX}.1.k_norm.ln_tuning_layers.weight"
LN: dict[str, Any] = {"peft_type": "LN_TUNING", "task_type": "CAUSAL_LM", "target_modules": ["norm"]}
LN_TENSORS = {f"{LAST}weight": rand(D), f"{LAST}bias": rand(D) + 1}
ROWS: dict[str, Any] = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 1]}
DELTA = "trainable_tokens_delta"
ROWS_TENSORS = {f"{EMBEDDING}{DELTA}": rand(2, D)}


def test_a_norm_is_replaced_as_a_whole(tmp_path: Path) -> None:
    artifact = load(write_artifact(tmp_path, LN, LN_TENSORS), BASE)
    assert (artifact.kind, artifact.rank, [*artifact.delta]) == ("LN_TUNING", 0, ["model.norm"])
    delta = artifact.delta["model.norm"]
    assert delta.scale is not None
    assert delta.bias is not None
    assert torch.equal(delta.scale, LN_TENSORS[f"{LAST}weight"])
    assert torch.equal(delta.bias, LN_TENSORS[f"{LAST}bias"])


@pytest.mark.parametrize(
    ("targets", "exclude", "keys"),
    [
        (["input_layernorm"], None, {FIRST, SECOND}),
        (["input_layernorm"], ["layers.0.input_layernorm"], {SECOND}),
        (".*input_layernorm", ".*1.*", {FIRST}),
        (["k_norm"], None, {KEYS}),
        (["model.layers.0.input_layernorm"], None, {FIRST}),
    ],
)
def test_norms_are_selected_as_peft_does(tmp_path: Path, targets: Any, exclude: Any, keys: set[str]) -> None:
    config = LN | {"target_modules": targets, "exclude_modules": exclude}
    tensors = {key: rand(4 if "k_norm" in key else D) for key in keys}
    assert len(load(write_artifact(tmp_path, config, tensors), BASE).delta) == len(keys)


@pytest.mark.parametrize(
    ("saved", "keys"),
    [(["model.norm"], set()), (["k_norm", "model.norm"], {KEYS}), (["0.input_layernorm"], {FIRST})],
)
def test_norms_to_save_are_replaced_beside_lora(tmp_path: Path, saved: list[str], keys: set[str]) -> None:
    config = SAVED | {"modules_to_save": saved}
    norms = {key.replace("ln_tuning_layers.", ""): rand(4 if "k_norm" in key else D) for key in keys}
    whole = WHOLE if "model.norm" in saved else {}
    artifact = load(write_artifact(tmp_path, config, {**LORA_TENSORS, **norms, **whole}), BASE)
    assert (artifact.kind, artifact.rank) == ("LORA+NORMS", 4)
    found = {f"base_model.model.{name}.weight": d.scale for name, d in artifact.delta.items() if d.rank == 0}
    assert found.keys() == norms.keys() | {key for key in whole if key.endswith("weight")}
    assert all(
        torch.equal(scale, {**norms, **whole}[key]) for key, scale in found.items() if scale is not None
    )
    assert not any(scale is None for scale in found.values())


@pytest.mark.parametrize(
    ("base", "targets", "tables"),
    [
        (UNTIED, None, (True, False)),
        (UNTIED, "model.embed_tokens", (True, False)),
        (UNTIED, ["lm_head"], (False, True)),
        (TIED, None, (True, True)),
        (TIED, "model.embed_tokens", (True, True)),
        (TIED, ["lm_head"], (False, True)),
    ],
)
def test_rows_of_the_tables_that_are_named(
    tmp_path: Path, base: BaseModel, targets: Any, tables: tuple[bool, bool]
) -> None:
    key = HEAD if targets == ["lm_head"] else EMBEDDING
    path = write_artifact(tmp_path, ROWS | {"target_modules": targets}, {f"{key}{DELTA}": rand(2, D)})
    artifact = load(path, base)
    found = artifact.vocabulary
    assert artifact.kind == "TRAINABLE_TOKENS"
    assert found is not None
    assert (found.embedding is not None, found.head is not None) == tables
    for table in (found.embedding, found.head):
        assert table is None or table.tokens == (3, 1)


def test_a_tied_head_may_be_saved_too(tmp_path: Path) -> None:
    both = {f"{key}{DELTA}": rand(2, D) for key in (EMBEDDING, HEAD)}
    assert load(write_artifact(tmp_path, ROWS, both), TIED).vocabulary is not None


def test_both_tables_of_an_untied_base_have_rows_of_their_own(tmp_path: Path) -> None:
    both = {f"{EMBEDDING}{DELTA}": rand(2, D), f"{HEAD}{DELTA}": rand(2, D) + 1}
    config = ROWS | {"target_modules": ["embed_tokens", "lm_head"]}
    found = load(write_artifact(tmp_path, config, both), UNTIED).vocabulary
    assert found is not None
    assert found.head is not None
    assert found.head.rows is not None
    assert torch.equal(found.head.rows, both[f"{HEAD}{DELTA}"])


NAN = torch.full((D,), torch.nan)
NORM = "base_model.model.model.norm."
SAVED = lora_config(rank=4, targets=["layers.0.q_proj"], modules_to_save=["model.norm"])
LORA_TENSORS = {Q_A: rand(4, 8), Q_B: rand(8, 4)}
WHOLE = {f"{NORM}weight": rand(D), f"{NORM}bias": rand(D) + 1}
CASES: list[tuple[BaseModel, dict[str, Any], Tensors, str]] = [
    (BASE, LN, {}, "selects modules that have no tensors: 'model.norm'"),
    (BASE, LN, {f"{LAST}weight": rand(D)}, "missing tensors: .*model.norm.ln_tuning_layers.bias"),
    (BASE, LN, {**LN_TENSORS, f"{LAST}weight": rand(D + 1)}, r"size mismatch.*\[9\], \[8\] is needed"),
    (BASE, LN, {**LN_TENSORS, f"{LAST}weight": rand(D, 1)}, r"size mismatch.*\[8, 1\], \[8\] is needed"),
    (BASE, LN, {**LN_TENSORS, f"{LAST}bias": NAN}, "NaN or infinite values in .*norm.ln_tuning_layers.bias"),
    (BASE, LN, {**LN_TENSORS, FIRST: rand(D)}, "unexpected tensors .*input_layernorm.*does not select"),
    (BASE, LN, {**LN_TENSORS, Q_A: rand(4, 8)}, "unexpected tensors .*q_proj.lora_A.*does not select"),
    (BASE, LN, {**LN_TENSORS, f"{LAST}running_mean": rand(D)}, "unexpected tensors .*running_mean"),
    (BASE, LN | {"target_modules": ["q_proj"]}, {}, "selects .*q_proj.*: of this kind only norms"),
    (BASE, LN | {"target_modules": ["odd_norm"]}, {}, "selects 'model.odd_norm': of this kind only norms"),
    (BASE, LN | {"target_modules": ["lm_head"]}, {}, "selects 'lm_head': of this kind only norms"),
    (BASE, LN | {"target_modules": "all-linear"}, {}, "selects .*: of this kind only norms"),
    (BASE, LN | {"target_modules": ["nowhere"]}, {}, "target modules 'nowhere' are not found"),
    (BASE, LN | {"target_modules": None}, LN_TENSORS, "target_modules is missing or empty"),
    (BASE, LN | {"target_modules": HOSTILE}, LN_TENSORS, "target_modules|not found"),
    (BASE, LN | {"modules_to_save": ["norm"]}, LN_TENSORS, "modules_to_save selects 'model.odd_norm': only"),
    (BASE, LN | {"modules_to_save": ["model.norm"]}, LN_TENSORS, "modules_to_save both select 'model.norm'"),
    (BASE, SAVED, LORA_TENSORS, "missing tensors: .*model.norm.weight.*model.norm.bias"),
    (BASE, SAVED, {**LORA_TENSORS, **WHOLE, f"{NORM}weight": rand(D + 1)}, r"size mismatch.*\[9\], \[8\]"),
    (BASE, SAVED, {**LORA_TENSORS, **WHOLE, f"{NORM}weight": NAN}, "NaN or infinite values in .*norm.weight"),
    (
        BASE, SAVED, {**LORA_TENSORS, **WHOLE, f"{PREFIX}.1.k_norm.weight": rand(4)},
        "unexpected tensors .*k_norm.weight.*neither target_modules nor modules_to_save selects",
    ),
    (BASE, SAVED | {"bias": "all"}, {**LORA_TENSORS, **WHOLE}, 'bias "all" and modules_to_save both replace'),
    (
        BASE, SAVED | {"alora_invocation_tokens": [3]}, {**LORA_TENSORS, **WHOLE},
        "norms in modules_to_save cannot be used with alora_invocation_tokens",
    ),
    (UNTIED, SAVED, {**LORA_TENSORS, **WHOLE}, "modules_to_save selects 'model.norm': only norms that scale"),
    (BASE, LN | {"r": 8}, LN_TENSORS, "'r' is not an option this server knows"),
    (UNTIED, LN, LN_TENSORS, "selects 'model.norm': of this kind only norms"),
    (UNTIED, ROWS, {}, "missing tensors: .*embed_tokens.trainable_tokens_delta"),
    (UNTIED, ROWS, {f"{EMBEDDING}{DELTA}": rand(3, D)}, r"size mismatch .* has \[3, 8\], \[2, 8\] is needed"),
    (UNTIED, ROWS, {f"{EMBEDDING}{DELTA}": rand(2, D) * torch.inf}, "NaN or infinite values"),
    (UNTIED, ROWS, {f"{EMBEDDING}token_adapter.{DELTA}": rand(2, D)}, "missing tensors"),
    (UNTIED, ROWS, {**ROWS_TENSORS, f"{HEAD}{DELTA}": rand(2, D)}, "unexpected tensors .*lm_head"),
    (UNTIED, ROWS, {**ROWS_TENSORS, Q_A: rand(4, 8)}, "unexpected tensors .*q_proj.lora_A"),
    (UNTIED, ROWS | {"token_indices": [3, 3]}, ROWS_TENSORS, "token_indices holds a token twice"),
    (UNTIED, ROWS | {"token_indices": [3, V]}, ROWS_TENSORS, "token_indices names token 20; .* has 20"),
    (UNTIED, ROWS | {"token_indices": [3, 10**30]}, ROWS_TENSORS, "token_indices names token 10{30}"),
    (UNTIED, ROWS | {"token_indices": [3, -1]}, ROWS_TENSORS, "token_indices should be a list"),
    (UNTIED, ROWS | {"token_indices": [True]}, ROWS_TENSORS, "token_indices should be a list"),
    (UNTIED, ROWS | {"token_indices": []}, ROWS_TENSORS, "token_indices is missing or empty"),
    (UNTIED, ROWS | {"token_indices": {"embed_tokens": [3]}}, ROWS_TENSORS, "token_indices should be a list"),
    (UNTIED, {"peft_type": "TRAINABLE_TOKENS"}, ROWS_TENSORS, "token_indices is missing"),
    (UNTIED, ROWS | {"target_modules": ["q_proj"]}, {}, "selects .*: of this kind only the input embeddings"),
    (UNTIED, ROWS | {"target_modules": ["norm"]}, {}, "selects 'model.norm': of this kind only the input"),
    (UNTIED, ROWS | {"target_modules": ["wpe"]}, {}, "target modules 'wpe' are not found"),
    (BIASED, ROWS | {"target_modules": ["lm_head"]}, {f"{HEAD}{DELTA}": rand(2, D)}, "has a bias: only LoRA"),
    (
        TIED, ROWS, {**ROWS_TENSORS, f"{HEAD}{DELTA}": rand(2, D) + 1},
        "are one tensor in PEFT, and differ in the file",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("base", "config", "tensors", "expected"), CASES)
def test_every_fault_is_told(
    tmp_path: Path, base: BaseModel, config: dict[str, Any], tensors: Tensors, *, expected: str
) -> None:
    found = faults(write_artifact(tmp_path, config, tensors), base)
    assert any(re.search(expected, fault) for fault in found), found


def test_a_base_whose_tables_cannot_be_changed(tmp_path: Path) -> None:
    found = faults(write_artifact(tmp_path, ROWS, ROWS_TENSORS), dataclasses.replace(UNTIED, vocabulary=None))
    assert any("not served on this base's embeddings" in fault for fault in found), found
