"""Validation: every fault alone, and several at once; what a valid artifact says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.config.support import Treatment
from manylora.adapters.format.faults import MAX_FAULTS
from manylora.adapters.format.files import CONFIG_NAME
from manylora.adapters.format.kinds.table import KINDS, OPTIONS
from tests.support.adapters import write_adapter, write_artifact
from tests.support.artifact_cases import (
    BASE,
    HOSTILE,
    LIMITS,
    PREFIX,
    Q_A,
    Q_B,
    Change,
    Tensors,
    faults_of,
    valid,
)


def set_key(key: str, value: object) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        config[key] = value

    return change


def set_keys(**values: object) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        config.update(values)

    return change


def put(key: str, tensor: torch.Tensor) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        tensors[key] = tensor

    return change


def drop(pattern: str) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        for key in [key for key in tensors if re.search(pattern, key)]:
            del tensors[key]

    return change


def rename(old: str, new: str) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        for key in [key for key in tensors if re.search(old, key)]:
            tensors[re.sub(old, new, key)] = tensors.pop(key)

    return change


def zeros(pattern: str) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        for key in tensors:
            if re.search(pattern, key):
                tensors[key] = torch.zeros_like(tensors[key])

    return change


def poison(value: float) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        tensors[Q_B][2, 1] = value

    return change


def both(*changes: Change) -> Change:
    def change(config: dict[str, Any], tensors: Tensors) -> None:
        for each in changes:
            each(config, tensors)

    return change


CONFIG_FAULTS: list[tuple[Change, str]] = [
    (set_key("peft_type", None), "peft_type is missing"),
    (set_key("peft_type", "XLORA"), "peft_type XLORA is not served.*name a mix"),
    (set_key("peft_type", "NEWLORA"), "peft_type 'NEWLORA' is not a kind"),
    (set_key("peft_type", ["LORA"]), "not a kind"),
    (set_key("task_type", "TOKEN_CLS"), "task_type 'TOKEN_CLS' is not served"),
    (set_key("auto_mapping", {"base_model_class": "X"}), "auto_mapping=.*set it to null"),
    (set_key("use_dora", 2), "use_dora should be true or false"),
    (set_key("lora_bias", "yes"), "lora_bias should be true or false"),
    (set_key("bias", "some"), "bias should be 'none', 'all' or"),
    (set_key("bias", ["all"]), "bias should be 'none', 'all' or"),
    (set_key("use_qalora", 1), "use_qalora=1 is not served"),
    (set_key("modules_to_save", ["lm_head"]), "modules_to_save selects 'lm_head': only norms"),
    (set_key("modules_to_save", 5), "modules_to_save should be a string or a list"),
    (set_key("trainable_token_indices", [1, 2]), "trainable_token_indices is not served on this base"),
    (set_key("trainable_token_indices", [1, -2]), "trainable_token_indices should be a list of token ids"),
    (set_key("trainable_token_indices", {"lm_head": []}), "trainable_token_indices should be a list"),
    (set_key("trainable_token_indices", {"lm_head": "x"}), "trainable_token_indices should be a list"),
    (set_key("target_parameters", ["experts.w"]), "target_parameters names 'experts.w'"),
    (set_key("layer_replication", [[0, 2], [1, 2]]), "layer_replication=.*not served"),
    (set_key("alora_invocation_tokens", []), "alora_invocation_tokens should be a list of 1 to 256 token"),
    (set_key("alora_invocation_tokens", [5] * 257), "alora_invocation_tokens should be a list of 1 to 256"),
    (set_key("alora_invocation_tokens", [5, -1]), "alora_invocation_tokens should be a list"),
    (set_key("alora_invocation_tokens", [True]), "alora_invocation_tokens should be a list"),
    (set_key("alora_invocation_tokens", "5"), "alora_invocation_tokens should be a list"),
    (set_key("arrow_config", {}), "arrow_config=.*not served"),
    (set_key("use_qalora", True), "use_qalora=True is not served"),
    (set_key("use_bdlora", {"nblocks": 2}), "use_bdlora=.*not served"),
    (set_key("megatron_config", {"tp": 2}), "megatron_config=.*not served"),
    (set_key("kasa_config", {"beta": 1}), "kasa_config=.*not served"),
    (set_key("velora_config", {}), "velora_config=.*not served"),
    (set_key("monteclora_config", {}), "monteclora_config=.*not served"),
    (set_key("init_lora_weights", "pissa"), "init_lora_weights='pissa' is not served.*path_initial_model"),
    (set_key("init_lora_weights", "pissa_niter_16"), "'pissa_niter_16' is not served"),
    (set_key("init_lora_weights", "olora"), "'olora' is not served.*path_initial_model"),
    (set_key("init_lora_weights", "OLoRA"), "'OLoRA' is not served"),
    (set_key("init_lora_weights", "corda"), "'corda' is not served"),
    (set_key("init_lora_weights", "lora_ga"), "'lora_ga' is not served"),
    (set_key("init_lora_weights", "loftq"), "'loftq' is not served.*no conversion"),
    (set_key("init_lora_weights", "magic"), "'magic' is not an initialization"),
    (set_key("init_lora_weights", 2), "init_lora_weights=2 is not an initialization"),
    (set_key("r", 0), "r should be a positive integer"),
    (set_key("r", -4), "r should be a positive integer"),
    (set_key("r", True), "r should be a positive integer.*True"),
    (set_key("r", 4.5), "r should be a positive integer"),
    (set_key("r", "4 or so"), "r should be a positive integer"),
    (set_key("r", [4]), "r should be a positive integer"),
    (set_key("r", 10**400), "r should be a positive integer"),
    (set_key("lora_alpha", 0), "lora_alpha should be a number above 0"),
    (set_key("lora_alpha", -16), "lora_alpha should be.*negative weight in a mix"),
    (set_key("lora_alpha", True), "lora_alpha should be"),
    (set_key("lora_alpha", 10**400), "lora_alpha should be"),
    (set_key("lora_alpha", "much"), "lora_alpha should be"),
    (set_key("lora_alpha", "1e999"), "lora_alpha should be"),
    (set_key("use_rslora", 1.5), "use_rslora should be true or false"),
    (set_key("rank_pattern", []), "rank_pattern should be an object"),
    (set_key("rank_pattern", {"q_proj": 0}), r"rank_pattern\['q_proj'\] should be a positive integer"),
    (set_key("rank_pattern", {"(": 4}), r"rank_pattern: '\(' is not a regular expression"),
    (set_key("alpha_pattern", {"q_proj": -1}), r"alpha_pattern\['q_proj'\] should be a number above 0"),
    (set_key("alpha_pattern", {r"q(?=_": 4}), r"alpha_pattern: 'q\(\?=_' is not a regular expression"),
    (set_key("alpha_pattern", {"(?=a)(b": 4, "(?=a)b": 4}), r"not a regular expression \('\(\?=a\)\(b'\)"),
    (set_key("target_modules", None), "target_modules is missing or empty"),
    (set_key("target_modules", []), "target_modules is missing or empty"),
    (set_key("target_modules", 5), "target_modules should be a string or a list"),
    (set_key("target_modules", ["q_proj", 5]), "target_modules should be a string or a list"),
    (set_key("target_modules", ["c_attn"]), "target modules 'c_attn' are not found in the base model"),
    (set_key("target_modules", "dummy-target-modules"), "are not found in the base model"),
    (set_key("target_modules", "("), "target_modules.*is not a regular expression"),
    (set_key("target_modules", ["q_proj", "v_proj", "lm_head"]), "target_modules selects 'lm_head'"),
    (set_key("target_modules", ["q_proj", "v_proj", "embed_tokens"]), "selects 'model.embed_tokens'"),
    (set_key("target_modules", ".*(_proj|_head)"), "target_modules selects 'lm_head'"),
    (set_key("exclude_modules", {}), "exclude_modules should be"),
    (set_key("exclude_modules", ["q_proj", "v_proj"]), "are not found in the base model"),
    (set_key("layers_to_transform", "first"), "layers_to_transform should be"),
    (set_key("layers_to_transform", [9]), "are not found in the base model"),
    (set_keys(layers_to_transform=[0], layers_pattern=["(a|b)"]), "are not found in the base model"),
    (set_keys(layers_to_transform=[0], layers_pattern=["(a"]), "layers_pattern: .*not a regular expression"),
    (set_key("layers_pattern", "layers"), "layers_to_transform must also be specified"),
    (set_keys(target_modules="all-linear", layers_to_transform=[0]), "cannot be used when"),
    (set_key("base_model_name_or_path", 5), "base_model_name_or_path should be a string or null"),
    (set_key("new_option", "on"), "'new_option' is not an option this server knows"),
    (set_key("new_option", 0), "'new_option' is not an option"),
    (set_key(HOSTILE, 1), "is not an option this server knows"),
    (set_key("new_option", [[[HOSTILE]]]), "is not an option this server knows"),
]  # fmt: skip

TENSOR_FAULTS: list[tuple[Change, str]] = [
    (drop(r"0\.q_proj"), "selects modules that have no tensors: 'model.layers.0.q_proj'"),
    (drop(r"0\.q_proj\.lora_B"), "missing tensors: .*0.q_proj.lora_B.weight"),
    (put(Q_A.replace("q_", "up_"), torch.ones(4, 8)), "unexpected tensors .*target_modules does not select"),
    (put("base_model.model.lm_head.lora_A.weight", torch.ones(4, 8)), "unexpected.*lm_head.*output head"),
    (put(f"{PREFIX}.0.x.lora_embedding_A", torch.ones(4, 8)), "unexpected.*lora_embedding_A"),
    (put(f"{PREFIX}.0.q_proj.lora_magnitude_vector", torch.ones(8)), "unexpected.*does not set use_dora"),
    (put(f"{PREFIX}.0.q_proj.lora_B.bias", torch.ones(8)), "unexpected.*does not set lora_bias"),
    (put(f"{PREFIX}.7.q_proj.lora_A.weight", torch.ones(4, 8)), "unexpected.*no such linear layers"),
    (put("base_model.model.lm_head.weight", torch.ones(4, 8)), "unexpected.*not named base_model.model"),
    (put(HOSTILE, torch.ones(1)), "header|not named"),
    (put(Q_A, torch.ones(4, 9)), r"size mismatch for .*lora_A.*\[4, 9\], \[4, 8\] is needed"),
    (put(Q_B, torch.ones(8, 5)), r"size mismatch for .*lora_B.*\[8, 5\], \[8, 4\] is needed"),
    (put(Q_A, torch.ones(4)), r"size mismatch for .*lora_A.*\[4\]"),
    (put(Q_A, torch.ones(8, 4)), "size mismatch for .*lora_A"),
    (both(put(Q_A, torch.ones(2, 8)), put(Q_B, torch.ones(8, 2))), "rank of .*0.q_proj' is 2 in its tensors"),
    (poison(math.nan), "NaN or infinite values in .*q_proj.lora_B"),
    (poison(math.inf), "NaN or infinite values in .*q_proj.lora_B"),
    (poison(-math.inf), "NaN or infinite values in .*q_proj.lora_B"),
    (zeros("lora_B"), "would do nothing"),
    (zeros("lora_A"), "would do nothing"),
    (zeros(r"(0\..*lora_A|1\..*lora_B)"), "would do nothing"),
    (put(Q_A, torch.ones(4, 8, dtype=torch.float64)), "tensors of F64: served are F32, F16, BF16"),
    (put(Q_A, torch.ones(4, 8, dtype=torch.int8)), "tensors of I8: served are"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), CONFIG_FAULTS + TENSOR_FAULTS)
def test_every_fault_is_told(tmp_path: Path, change: Change, expected: str) -> None:
    config, tensors = valid()
    change(config, tensors)
    faults = faults_of(write_artifact(tmp_path, config, tensors))
    assert len(faults) == 1, faults
    assert re.search(expected, faults[0]), faults


def test_a_renamed_tensor_is_named(tmp_path: Path) -> None:
    config, tensors = valid()
    rename(r"0\.q_proj\.lora_A", "0.query.lora_A")(config, tensors)
    faults = faults_of(write_artifact(tmp_path, config, tensors))
    assert len(faults) == 2, faults
    assert "0.query.lora_A.weight': no such linear layers" in faults[0]
    assert "missing tensors" in faults[1]
    assert Q_A in faults[1]


def test_names_with_an_adapter_in_them(tmp_path: Path) -> None:
    config, tensors = valid()
    rename(r"\.weight$", ".default.weight")(config, tensors)
    faults = faults_of(write_artifact(tmp_path, config, tensors))
    assert "save the adapter with PEFT's save_pretrained" in faults[0]
    assert len(faults) == 2


@pytest.mark.parametrize("number", range(12))
def test_faults_are_reported_together(tmp_path: Path, number: int) -> None:
    """Three from different places of the file, each of which is found without the others."""
    options = [c for c in CONFIG_FAULTS if re.match(r"(?!init)\w+=.*not served", c[1])]
    inits = [c for c in CONFIG_FAULTS if re.match(r"(init_lora_weights=)?'\w+' is not served", c[1])]
    pick = [
        options[number % len(options)],
        inits[number % len(inits)],
        [TENSOR_FAULTS[index] for index in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 18)][number],
    ]
    config, tensors = valid()
    for change, _ in pick:
        change(config, tensors)
    faults = faults_of(write_artifact(tmp_path, config, tensors))
    for _, expected in pick:
        assert any(re.search(expected, fault) for fault in faults), (expected, faults)
    assert len(faults) == 3, faults


def test_config_and_weights_are_judged_even_when_one_cannot_be_read(tmp_path: Path) -> None:
    config, tensors = valid()
    poison(math.nan)(config, tensors)
    tensors[Q_A] = torch.ones(4, 9)
    write_artifact(tmp_path, config, tensors)
    (tmp_path / CONFIG_NAME).write_text("{")
    faults = faults_of(tmp_path)
    assert len(faults) == 3
    assert "not valid JSON" in faults[0]
    assert "size mismatch" in faults[1]
    assert "NaN" in faults[2]


def test_many_faults_are_cut(tmp_path: Path) -> None:
    config, tensors = valid()
    config.update({f"option_{index}": index for index in range(1000)})
    faults = faults_of(write_artifact(tmp_path, config, tensors))
    assert len(faults) == MAX_FAULTS + 1
    assert faults[-1] == f"and {1000 - MAX_FAULTS} more faults"


def test_a_wholly_different_base_is_short_to_say(tmp_path: Path) -> None:
    config, tensors = valid()
    rename("lora_", "x.lora_")(config, tensors)
    tensors.update({f"{key}.{index}": torch.ones(1) for key in list(tensors) for index in range(30)})
    faults = faults_of(write_artifact(tmp_path, config, tensors))
    assert len(faults) == 3, faults
    assert "and 4 more" in faults[0]


@pytest.mark.parametrize("option", [o for o in OPTIONS["LORA"] if o.treatment is Treatment.REFUSED])
def test_refused_options_load_when_off(tmp_path: Path, option: Any) -> None:
    for value in option.off:
        config, tensors = valid()
        config[option.key] = value
        read_artifact(write_artifact(tmp_path, config, tensors), BASE, LIMITS)


@pytest.mark.parametrize("kind", [kind.peft_type for kind in KINDS if kind.treatment is Treatment.REFUSED])
def test_every_other_kind_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 8, "alpha": 3}
    faults = faults_of(write_artifact(tmp_path, config, {"base_model.model.x.hada_w1_a": torch.ones(2)}))
    assert len(faults) == 1
    assert faults[0].startswith(f"peft_type {kind} is not served")


def test_rank_above_the_limit(tmp_path: Path) -> None:
    write_adapter(tmp_path, BASE, rank=4, rank_pattern={"1.v_proj": 9})
    faults = faults_of(tmp_path, Limits(max_rank=8, max_bytes=1 << 20))
    assert faults == ("rank 9 of 'model.layers.1.v_proj' is above the limit of 8 (--max-lora-rank)",)
    read_artifact(tmp_path, BASE, Limits(max_rank=9, max_bytes=1 << 20))


def test_bytes_above_the_limit(tmp_path: Path) -> None:
    write_adapter(tmp_path, BASE, rank=4)
    nbytes = read_artifact(tmp_path, BASE, LIMITS).nbytes
    read_artifact(tmp_path, BASE, Limits(64, nbytes))
    faults = faults_of(tmp_path, Limits(2, nbytes - 1))
    assert len(faults) == 2
    assert f"the limit is {nbytes - 1:,}" in faults[0]
    assert "rank 4" in faults[1], "the header is judged although the values are not read"
