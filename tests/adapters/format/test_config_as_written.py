"""Configs as people and tools write them: what changes nothing loads, what might is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.foreign_keys import HARMLESS, Judgement, judge
from manylora.adapters.format.config.soft_prompts import SOFT_PROMPT_OPTIONS
from manylora.adapters.format.config.support import Treatment
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES, OPTIONS
from tests.support.adapters import lora_config, lora_tensors, write_artifact
from tests.support.artifact_cases import BASE, LIMITS, faults_of, valid
from tests.support.fuzzing import FUZZ

PLAIN = lora_config(
    rank=4,
    alpha=8,
    rank_pattern={"0.q_proj": 2},
    alpha_pattern={"v_proj": 6},
    use_dora=False,
    lora_bias=False,
)


def load(directory: Path, changes: dict[str, Any], plain: dict[str, Any] = PLAIN) -> Artifact:
    """The adapter of the plain config with that config changed, but not its tensors."""
    return read_artifact(write_artifact(directory, plain | changes, lora_tensors(BASE, plain)), BASE, LIMITS)


def meaning(artifact: Artifact) -> object:
    """All that an artifact computes."""
    modules = {
        name: (delta.rank, delta.scaling, delta.a.tolist(), delta.magnitude is None)
        for name, delta in artifact.delta.items()
    }
    return artifact.kind, artifact.activation, modules


SPELLINGS: list[dict[str, Any]] = [
    {"r": 4.0}, {"r": "4"}, {"r": "4.0"}, {"r": " 4 "}, {"r": "4e0"},
    {"lora_alpha": 8.0}, {"lora_alpha": "8"}, {"lora_alpha": "8.0"}, {"lora_alpha": None},
    {"rank_pattern": {"0.q_proj": 2.0}}, {"rank_pattern": {"0.q_proj": "2"}},
    {"alpha_pattern": {"v_proj": "6"}}, {"alpha_pattern": {"v_proj": "6.0"}},
    {"peft_type": "lora"}, {"peft_type": "Lora"}, {"peft_type": "PeftType.LORA"},
    {"task_type": "causal_lm"}, {"task_type": "TaskType.CAUSAL_LM"}, {"task_type": ""}, {"task_type": None},
    {"bias": ""}, {"bias": None}, {"bias": "None"}, {"bias": "NONE"}, {"bias": False},
    {"use_rslora": 0}, {"use_rslora": "false"}, {"use_rslora": 0.0}, {"use_rslora": None}, {"use_rslora": ""},
    {"use_dora": 0}, {"use_dora": "False"}, {"lora_bias": "0"}, {"ensure_weight_tying": 0},
    {"init_lora_weights": 1}, {"init_lora_weights": "true"}, {"init_lora_weights": "False"},
    {"init_lora_weights": None}, {"use_qalora": 0}, {"use_qalora": "false"}, {"use_bdlora": ""},
    {"target_parameters": ""}, {"layer_replication": ""}, {"modules_to_save": ""}, {"modules_to_save": False},
    {"layers_to_transform": ""}, {"layers_to_transform": []}, {"layers_pattern": ""}, {"exclude_modules": ""},
    {"exclude_modules": False}, {"trainable_token_indices": ""}, {"alora_invocation_tokens": None},
    {"auto_mapping": {}}, {"inference_mode": 1}, {"lora_dropout": "0.1"}, {"fan_in_fan_out": 0},
    {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "unsloth.models.llama",
                      "unsloth_fixed": True}},
    {"auto_mapping": {"base_model_class": "X", "parent_library": "unsloth_compiled_module_gemma3"}},
    {"auto_mapping": {"base_model_class": "X", "parent_library": "transformers_modules.org.modeling_x"}},
]  # fmt: skip


@pytest.mark.parametrize("changes", SPELLINGS, ids=repr)
def test_another_spelling_means_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert meaning(load(tmp_path / "changed", changes)) == meaning(load(tmp_path / "plain", {}))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"use_rslora": 1}, {"use_rslora": True}),
        ({"use_rslora": "True"}, {"use_rslora": True}),
        ({"bias": "ALL"}, {"bias": "all"}),
        ({"layers_to_transform": "1"}, {"layers_to_transform": 1}),
        ({"layers_to_transform": [1.0, "0"]}, {"layers_to_transform": [0, 1]}),
        ({"alora_invocation_tokens": [5.0, "6"]}, {"alora_invocation_tokens": [5, 6]}),
        ({"r": None}, {"r": 8}),
        ({"lora_alpha": "1e2"}, {"lora_alpha": 100}),
    ],
)
def test_a_value_counts_as_what_it_equals(changes: dict[str, Any], same: dict[str, Any]) -> None:
    one, other = Faults(), Faults()
    assert parse_config(PLAIN | changes, one) == parse_config(PLAIN | same, other)
    assert not len(one)
    assert not len(other)


def test_veras_defaults_may_be_null() -> None:
    config = {"peft_type": "vera", "r": 4.0, "target_modules": ["q_proj"]}
    odd = config | {"save_projection": "false", "projection_prng_key": "7.0"}
    faults = Faults()
    for options, key in ((config | {"save_projection": None, "projection_prng_key": None}, None), (odd, 7)):
        parsed = parse_config(options, faults)
        assert parsed is not None
        assert parsed.projection_key == key


@pytest.mark.parametrize(
    "value", [float("1e300"), "0x10", "4,0", "four", "٤", "4" * 50, "1_6", "nan", True, [4]]
)
def test_what_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ArtifactError, match="r should be a positive integer"):
        load(tmp_path, {"r": value})


FOREIGN: dict[str, Any] = {
    "unsloth_version": "2025.3.19", "unsloth_fixed": True, "enable_lora": True, "merge_weights": True,
    "lora_dtype": "AUTO", "lorap_lr_ratio": 16.0, "transformers_version": "5.23.0", "torch_dtype": "bfloat16",
    "_name_or_path": "org/base", "quantization_config": {"load_in_4bit": True}, "seed": 0,
    "random_state": 3407, "adapter_type": "LoRA", "axolotl_version": "0.9",
}  # fmt: skip


@pytest.mark.parametrize("key", FOREIGN)
def test_keys_of_other_tools_load_with_a_note(tmp_path: Path, key: str) -> None:
    artifact = load(tmp_path / "changed", {key: FOREIGN[key]})
    assert meaning(artifact) == meaning(load(tmp_path / "plain", {}))
    assert len(artifact.notes) == 1
    assert repr(key) in artifact.notes[0]


def test_all_of_them_in_one_note(tmp_path: Path) -> None:
    (note,) = load(tmp_path, FOREIGN).notes
    assert all(repr(key) in note for key in FOREIGN)


def test_a_strange_library_is_noted_and_not_imported(tmp_path: Path) -> None:
    (note,) = load(tmp_path, {"auto_mapping": {"base_model_class": "X", "parent_library": "evil.code"}}).notes
    assert "'evil.code', which is not imported" in note


@pytest.mark.parametrize("library", ["os; import x", "../x", "a b", "", 5, None, "x" * 200, "a..b", "a\n"])
def test_a_library_has_a_name(tmp_path: Path, library: object) -> None:
    with pytest.raises(ArtifactError, match=r"auto_mapping=.*set it to null"):
        load(tmp_path, {"auto_mapping": {"base_model_class": "X", "parent_library": library}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enable_lora", [True, False, True]), ("scaling", 2.0), ("alpha", 8), ("use_merged_linear", True),
        ("lora_scale", "1"), ("adapter_type", "boft"), ("invocation_string", "x"), ("new_option", 0),
        ("use_new_thing", {"a": None}), ("target_r", 8), ("feedforward_modules", ["up_proj"]), ("", 1),
        ("R", 4), ("version_of", 1),
    ],
)  # fmt: skip
def test_keys_that_might_change_the_meaning_are_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ArtifactError, match=f"'{key}' is not an option this server knows"):
        load(tmp_path, {key: value})


def _saved(kind: Any, directory: Path) -> dict[str, Any]:
    """The config of a PEFT class as it saves itself, with targets where it has such a field."""
    fields = {field.name for field in dataclasses.fields(kind)}
    wanted = {"target_modules": ["q_proj", "v_proj"], "total_step": 10}  # the latter of AdaLoRA
    kind(**{key: value for key, value in wanted.items() if key in fields}).save_pretrained(directory)
    saved: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return saved


@pytest.mark.filterwarnings("ignore::UserWarning")  # of classes that want more arguments
@pytest.mark.parametrize("kind", sorted(PEFT_TYPE_TO_CONFIG_MAPPING, key=str), ids=str)
def test_every_config_class_of_peft_is_served_or_refused_for_its_kind(tmp_path: Path, kind: Any) -> None:
    try:
        config = _saved(PEFT_TYPE_TO_CONFIG_MAPPING[kind], tmp_path)
    except (ImportError, TypeError, ValueError):
        config = {"peft_type": kind.value}  # its class needs more to be made
    faults = Faults()
    parsed = parse_config(config | FOREIGN, faults, KINDS_OF_UPDATES)
    needed: dict[str, Any] = {"feedforward_modules": []} if kind.value == "IA3" else {}
    if kind.value in SOFT_PROMPT_OPTIONS:
        needed = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 1}
    if kind.value in OPTIONS:
        faults = Faults()
        parsed = parse_config(config | FOREIGN | needed, faults, KINDS_OF_UPDATES)
        faults.raise_any()
        assert parsed is not None
        assert len(parsed.notes) == 1
        return
    assert len(faults) == 1
    with pytest.raises(ArtifactError, match=f"peft_type {kind.value} is not served"):
        faults.raise_any()


KEYS_OF_PEFT = sorted(
    {field.name for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values() for field in dataclasses.fields(kind)}
)
inert: st.SearchStrategy[Any] = st.sampled_from([None, False, "", [], {}])


@pytest.mark.slow
@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS_OF_PEFT) | st.text(max_size=8), inert, max_size=6))
def test_keys_of_other_kinds_and_versions_that_ask_for_nothing(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Any]
) -> None:
    unknown = {k: v for k, v in keys.items() if k not in {option.key for option in OPTIONS["LORA"]}}
    assert load(tmp_path_factory.mktemp("a"), unknown).notes == ()


@settings(max_examples=200, deadline=None)
@given(
    st.text(min_size=1, max_size=12).filter(lambda key: judge(key, 1) is Judgement.REFUSED),
    st.integers() | st.floats(allow_nan=False) | st.text(min_size=1) | st.just(True) | st.just([0]),
)
def test_an_unknown_key_that_says_something_is_never_taken(key: str, value: object) -> None:
    assert judge(key, value) is Judgement.REFUSED


def test_no_option_of_peft_counts_as_harmless() -> None:
    """A key that some PEFT reads is in the table of support, or refused."""
    harmless = {key for group in HARMLESS for key in group.keys}
    served = {option.key for options in OPTIONS.values() for option in options}
    assert not harmless & (served | set(KEYS_OF_PEFT))


def test_what_is_refused_stays_refused_when_a_flag_is_a_number(tmp_path: Path) -> None:
    for option in OPTIONS["LORA"]:
        if option.treatment is Treatment.REFUSED and False in option.off:
            for value in (1, "true", 1.0, "yes", 2):
                config, tensors = valid()
                faults = faults_of(write_artifact(tmp_path, config | {option.key: value}, tensors))
                assert f"{option.key}=" in faults[0]


def test_dora_by_a_number_needs_its_magnitudes(tmp_path: Path) -> None:
    plain = PLAIN | {"use_dora": True}
    artifact = load(tmp_path, {"use_dora": 1}, plain)
    assert artifact.kind == "LORA+DORA"
    assert all(isinstance(delta.magnitude, torch.Tensor) for delta in artifact.delta.values())
