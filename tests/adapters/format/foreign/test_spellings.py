"""Names of tensors that are not quite PEFT's: whatever way they are spelled, the adapter is the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.foreign.convert import convert
from tests.support.adapters import write_artifact
from tests.support.foreign_adapters import (
    LIMITS,
    PREFIX,
    Tensors,
    assert_same_change,
    converted,
    peft_adapter,
    read,
    refusal,
    renamed,
    tiny_base,
    written,
)

Rename = Callable[[str], str]
FAMILIES = ("llama", "qwen2", "phi3", "gpt2", "gpt_neox")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str) -> BaseModel:
    return tiny_base(family)


def named(name: str) -> Rename:
    return lambda key: re.sub(r"\.(lora_[AB])\.weight$", rf".\1.{name}.weight", key)


def front(new: str) -> Rename:
    return lambda key: new + key.removeprefix(PREFIX)


def after_model(wrapper: str) -> Rename:
    """``model.layers`` becomes ``model.language_model.layers``: behind the first segment."""

    def rename(key: str) -> str:
        first, rest = key.removeprefix(PREFIX).split(".", 1)
        return f"{PREFIX}{first}.{wrapper}.{rest}"

    return rename


def ending(a: str, b: str) -> Rename:
    return lambda key: key.replace(".lora_A.weight", a).replace(".lora_B.weight", b)


def in_blocks(key: str) -> str:
    return re.sub(r"(\.\d+\.)", r"\1_orig_mod.", key, count=1)


PATHS: dict[str, Rename] = {
    "no base_model": front(""),
    "no base_model.model": lambda key: key.removeprefix("base_model."),
    "doubled": front(PREFIX * 2),
    "language_model": front(f"{PREFIX}language_model."),
    "model.language_model": after_model("language_model"),
    "language_model alone": front("language_model."),
    "compiled": front(f"{PREFIX}_orig_mod."),
    "compiled outside": front(f"_orig_mod.{PREFIX}"),
    "compiled blocks": in_blocks,
    "data parallel": front(f"module.{PREFIX}"),
    "data parallel, compiled": front(f"module._orig_mod.{PREFIX}"),
    "sharded": after_model("_fsdp_wrapped_module"),
}
ENDINGS: dict[str, Rename] = {
    "default": named("default"),
    "an adapter's name": named("my-adapter_2"),
    "a number": named("0"),
    "bare": ending(".lora_A", ".lora_B"),
    "bare with a name": ending(".lora_A.default", ".lora_B.default"),
    "lower case": ending(".lora_a.weight", ".lora_b.weight"),
    "upper case": ending(".LORA_A.weight", ".LORA_B.weight"),
    "down and up": ending(".lora_down.weight", ".lora_up.weight"),
    "down and up with a name": ending(".lora_down.default.weight", ".lora_up.default.weight"),
    "diffusers": ending(".lora.down.weight", ".lora.up.weight"),
    "diffusers' old layer": ending(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "processor": ending("_lora.down.weight", "_lora.up.weight"),
    "Megatron": ending(".adapter.linear_in.weight", ".adapter.linear_out.weight"),
}


def write_spelled(directory: Path, config: Mapping[str, object], tensors: Tensors, how: Rename) -> None:
    write_artifact(directory, config, renamed(tensors, how))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_any_path_is_the_same_revision(base: BaseModel, family: str, tmp_path: Path, path: str) -> None:
    config, tensors = peft_adapter(tmp_path / "peft", base, family)
    write_spelled(tmp_path / "in", config, tensors, PATHS[path])
    found = converted(tmp_path / "in", tmp_path / "out", base)
    assert written(tmp_path / "out").keys() == tensors.keys()
    assert read(tmp_path / "out", base).digest == read(tmp_path / "peft", base).digest
    assert found.conversion.details()["rules"]


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDINGS)
def test_any_ending_is_the_same_revision(base: BaseModel, family: str, tmp_path: Path, end: str) -> None:
    config, tensors = peft_adapter(tmp_path / "peft", base, family, dtype=torch.bfloat16)
    write_spelled(tmp_path / "in", config, tensors, ENDINGS[end])
    converted(tmp_path / "in", tmp_path / "out", base)
    assert read(tmp_path / "out", base).digest == read(tmp_path / "peft", base).digest


@pytest.mark.slow
@pytest.mark.parametrize(("path", "end"), list(product(PATHS, ("default", "down and up", "lower case"))))
def test_paths_and_endings_together(tmp_path: Path, path: str, end: str) -> None:
    base = tiny_base("llama")
    config, tensors = peft_adapter(tmp_path / "peft", base, "llama")
    write_spelled(tmp_path / "in", config, tensors, lambda key: PATHS[path](ENDINGS[end](key)))
    converted(tmp_path / "in", tmp_path / "out", base)
    assert read(tmp_path / "out", base).digest == read(tmp_path / "peft", base).digest


def test_what_is_pefts_is_left_alone(base: BaseModel, family: str, tmp_path: Path) -> None:
    peft_adapter(tmp_path / "peft", base, family)
    assert convert(tmp_path / "peft", base, LIMITS) is None


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    "rslora": {"rslora": True},
    "ranks by block": {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 8}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["language_model", "model.language_model", "doubled", "compiled"])
def test_options_of_peft_stay_what_they_are(tmp_path: Path, kind: str, path: str) -> None:
    base = tiny_base("llama")
    config, tensors = peft_adapter(tmp_path / "peft", base, "llama", **KINDS[kind])

    def rename(key: str) -> str:
        key = named("default")(key).replace(".lora_B.bias", ".lora_B.default.bias")
        return PATHS[path](key.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight"))

    write_spelled(tmp_path / "in", config, tensors, rename)
    converted(tmp_path / "in", tmp_path / "out", base)
    assert_same_change(read(tmp_path / "out", base), read(tmp_path / "peft", base))


@pytest.mark.parametrize(
    "targets",
    [
        r".*language_model.*\.(q_proj|v_proj)",
        ["language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.1.self_attn.v_proj"],
    ],
)
def test_modules_that_the_config_names_in_the_other_model(tmp_path: Path, targets: str | list[str]) -> None:
    base = tiny_base("llama")
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    if isinstance(targets, str):
        modules = [f"model.layers.{i}.self_attn.{m}_proj" for i in (0, 1) for m in "qv"]
    config, tensors = peft_adapter(tmp_path / "peft", base, "llama")
    own = {k: t for k, t in tensors.items() if any(f"{m}." in k for m in modules)}
    plain = write_artifact(tmp_path / "plain", {**config, "target_modules": modules}, own)
    pattern = {"alpha_pattern": {"language_model.model.layers.0.self_attn.q_proj": 24}}
    write_artifact(plain, {**config, "target_modules": modules, "alpha_pattern": {modules[0]: 24}}, own)
    write_artifact(
        tmp_path / "in",
        {**config, "target_modules": targets, **pattern},
        renamed(own, front(f"{PREFIX}language_model.")),
    )
    converted(tmp_path / "in", tmp_path / "out", base)
    assert_same_change(read(tmp_path / "out", base), read(plain, base))


@pytest.mark.parametrize(
    ("peft_type", "options"),
    [
        ("IA3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("VERA", {"target_modules": ["q_proj"], "r": 4}),
    ],
)
def test_kinds_that_only_peft_has(tmp_path: Path, peft_type: str, options: dict[str, Any]) -> None:
    from tests.support.adapters import write_kind

    base = tiny_base("llama")
    write_kind(tmp_path / "peft", base, peft_type=peft_type, **options)

    def rename(key: str) -> str:
        return "module." + re.sub(r"(ia3_l|vera_lambda_[bd])$", r"\1.default", key)

    config = dict(_config(tmp_path / "peft"))
    write_artifact(tmp_path / "in", config, renamed(written(tmp_path / "peft"), rename))
    if peft_type == "VERA":  # its shared matrices are of no module
        tensors = written(tmp_path / "in")
        tensors = {
            k.removeprefix("module.") if "vera_A" in k or "vera_B" in k else k: t for k, t in tensors.items()
        }
        write_artifact(tmp_path / "in", config, tensors)
    converted(tmp_path / "in", tmp_path / "out", base)
    assert read(tmp_path / "out", base).digest == read(tmp_path / "peft", base).digest


def test_modules_of_other_kinds_move_as_well(tmp_path: Path) -> None:
    from tests.support.adapters import write_kind

    base = tiny_base("llama")
    options: dict[str, Any] = {
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    }
    write_kind(tmp_path / "peft", base, peft_type="IA3", **options)
    config = _config(tmp_path / "peft") | {"target_modules": r".*language_model.*(k_proj|down_proj)"}
    tensors = renamed(written(tmp_path / "peft"), lambda key: PATHS["language_model"](f"{key}.default"))
    write_artifact(tmp_path / "in", config, tensors)
    converted(tmp_path / "in", tmp_path / "out", base)
    found, expected = read(tmp_path / "out", base).delta, read(tmp_path / "peft", base).delta
    assert found.keys() == expected.keys()


def test_equal_names_of_another_kind_stay(tmp_path: Path) -> None:
    """AdaLoRA's lora_A is a parameter, whose name ends there."""
    base = tiny_base("llama")
    module = f"{PREFIX}model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A": torch.rand(4, 32), f"{module}.lora_B": torch.rand(32, 4)}
    config = {"peft_type": "ADALORA", "target_modules": ["q_proj"], "r": 4}
    write_artifact(tmp_path / "in", config, tensors)
    assert convert(tmp_path / "in", base, LIMITS) is None
    write_artifact(tmp_path / "in", config, renamed(tensors, lambda key: f"{key}.default"))
    converted(tmp_path / "in", tmp_path / "out", base)
    assert written(tmp_path / "out").keys() == tensors.keys()


def test_tables_of_the_vocabulary(tmp_path: Path) -> None:
    base = tiny_base("llama")
    config, tensors = peft_adapter(tmp_path / "some", base, "llama")
    config |= {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    own = {k: t for k, t in tensors.items() if "q_proj" in k}
    own[f"{PREFIX}model.embed_tokens.lora_embedding_A"] = torch.rand(4, 32)
    own[f"{PREFIX}model.embed_tokens.lora_embedding_B"] = torch.rand(32, 4)
    own[f"{PREFIX}lm_head.weight"] = torch.rand(32, 32)
    write_artifact(tmp_path / "peft", config, own)

    def rename(key: str) -> str:
        key = re.sub(r"(lora_embedding_[AB])$", r"\1.default", key)
        key = key.replace("lm_head.weight", "lm_head.modules_to_save.default.weight")
        return key.replace("model.embed", "language_model.model.embed").replace(
            "model.layers", "model.model.layers"
        )

    write_artifact(tmp_path / "in", config, renamed(own, rename))
    converted(tmp_path / "in", tmp_path / "out", base)
    assert read(tmp_path / "out", base).digest == read(tmp_path / "peft", base).digest


def test_kohya_files_need_no_config(base: BaseModel, family: str, tmp_path: Path) -> None:
    _, tensors = peft_adapter(tmp_path / "peft", base, family)
    flat = {}
    for key, tensor in tensors.items():
        path, part = key.removeprefix(PREFIX).rsplit(".lora_", 1)
        name = "lora_" + path.replace(".", "_")
        flat[f"{name}.{'lora_down' if part.startswith('A') else 'lora_up'}.weight"] = tensor
        flat[f"{name}.alpha"] = torch.tensor(6.0)
    (tmp_path / "in").mkdir()
    save_file(flat, tmp_path / "in" / "my_lora.safetensors", {"ss_network_dim": "4"})
    found = converted(tmp_path / "in", tmp_path / "out", base)
    assert found.conversion.details()["format"] == "kohya"
    assert_same_change(read(tmp_path / "out", base), read(tmp_path / "peft", base))


def test_alpha_may_differ_by_module(tmp_path: Path) -> None:
    base = tiny_base("llama")
    _, tensors = peft_adapter(tmp_path / "peft", base, "llama")
    flat = renamed(tensors, lambda key: ENDINGS["down and up"](front("")(key)))
    alphas = {"q_proj": 4.0, "v_proj": 1.0}
    for key in list(flat):
        path = key.rsplit(".lora_", 1)[0]
        flat[f"{path}.alpha"] = torch.tensor([alphas.get(path.rpartition(".")[2], 6.0)], dtype=torch.float16)
    (tmp_path / "in").mkdir()
    save_file(flat, tmp_path / "in" / "pytorch_lora_weights.safetensors")
    converted(tmp_path / "in", tmp_path / "out", base)
    scales = {n.rpartition(".")[2]: d.scaling for n, d in read(tmp_path / "out", base).delta.items()}
    assert (scales["q_proj"], scales["v_proj"], scales["o_proj"]) == (1.0, 0.25, 1.5)


def test_loralib_writes_a_and_b_without_a_scale(tmp_path: Path) -> None:
    base = tiny_base("llama")
    _, tensors = peft_adapter(tmp_path / "peft", base, "llama")
    (tmp_path / "in").mkdir()
    save_file(renamed(tensors, front("")), tmp_path / "in" / "lora.safetensors")
    with pytest.raises(ArtifactError, match=r"alpha of .* is not known: put an adapter_config.json"):
        convert(tmp_path / "in", base, LIMITS)


def test_two_names_of_one_tensor_are_a_fault(tmp_path: Path) -> None:
    base = tiny_base("llama")
    config, tensors = peft_adapter(tmp_path / "peft", base, "llama")
    key = next(iter(tensors))
    for other in (named("default")(key), f"module.{key}", key.replace("lora_A", "lora_a"), PREFIX + key):
        write_artifact(tmp_path / "in", config, {**tensors, other: tensors[key].clone()})
        with pytest.raises(ArtifactError, match="both are") as error:
            convert(tmp_path / "in", base, LIMITS)
        assert repr(other)[1:60] in str(error.value)


@pytest.mark.parametrize(
    "stray",
    [
        f"{PREFIX}vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight",
        f"{PREFIX}model.visual.blocks.0.attn.qkv.lora_A.weight",
        f"{PREFIX}vision_model.layers.0.self_attn.qkv_proj.lora_A.weight",
        f"{PREFIX}encoder.layers.0.self_attn.qkv_proj.lora_A.weight",
        "optimizer.state",
        f"{PREFIX}model.layers.7.self_attn.q_proj.lora_A.default.weight",
        f"{PREFIX}model.layers.0.attn.wq.lora_A.default.weight",  # Meta's rows are in another order
        f"{PREFIX}model.layers.0.self_attn.q_proj.base_layer.weight",
    ],
)
def test_what_is_left_over_is_a_fault_by_name(tmp_path: Path, stray: str) -> None:
    base = tiny_base("llama")
    config, tensors = peft_adapter(tmp_path / "peft", base, "llama")
    named_tensors = renamed(tensors, named("default"))
    write_artifact(tmp_path / "in", config, {**named_tensors, stray: torch.rand(4, 32)})
    told = refusal(tmp_path / "in", tmp_path / "out", base)
    assert stray.partition(".lora_A")[0] in told


def _config(directory: Path) -> dict[str, object]:
    import json

    return dict(json.loads((directory / "adapter_config.json").read_text()))
