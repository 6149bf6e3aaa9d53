"""What an artifact says is what PEFT would do with the same files."""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.files import WEIGHTS_NAME
from tests.support.adapters import base_model_of, write_adapter
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT still asks for it
    "ignore:.*(lora_)?eva",  # it wants data, which this is not about
    "ignore:.*changes the base weights of the model",  # and therefore is refused as it is
    "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning",
)

LIMITS = Limits(max_rank=64, max_bytes=1 << 26)
TOKENS = torch.tensor([[72, 101, 108, 108, 111, 33]])
FULL_NAME = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(directory: Path) -> nn.Module:
    return load(directory)


@pytest.fixture(scope="module")
def base(model: nn.Module) -> BaseModel:
    return base_model_of(model)


def load(directory: Path) -> nn.Module:
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return loaded.eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    result: torch.Tensor = model(TOKENS).logits
    return result


def layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's LoRA layers by the base's module names."""
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def compare(artifact: Artifact, model: nn.Module, adapter: Path) -> None:
    """Modules, ranks, scalings and weight deltas are PEFT's; and the adapter changes the logits."""
    before = logits(model)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), adapter)
    found = layers(wrapped)
    assert artifact.delta.keys() == found.keys()
    for name, layer in found.items():
        weights = artifact.delta[name]
        assert weights.rank == layer.r["default"], name
        assert weights.scaling == layer.scaling["default"], name
        delta = weights.scaling * (weights.b.float() @ weights.a.float())
        theirs = layer.get_delta_weight("default")
        torch.testing.assert_close(delta.T if layer.fan_in_fan_out else delta, theirs)
    assert not torch.equal(logits(wrapped), before)


patterns = st.sampled_from(
    [
        "q_proj", "self_attn.v_proj", FULL_NAME, r"layers\.0\..*", r"^model\.layers\.1\.mlp\.(up|down)_proj",
        r".*\.(gate|up)_proj", "layers.1.mlp.up_proj", "nothing_like_it", r"self_attn\.[qk]_proj", "proj",
    ]
)  # fmt: skip
some_names = st.lists(
    st.sampled_from(["q_proj", "v_proj", "self_attn.o_proj", "mlp.up_proj", "down_proj", FULL_NAME]),
    min_size=1,
    max_size=4,
    unique=True,
)
some_regex = st.sampled_from(
    [r".*\.layers\.\d\.mlp\..*_proj", r"model\.layers\.(0|1)\.self_attn\.(q|v)_proj"]
)


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would load PEFT for minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rank=st.integers(1, 9),
    alpha=st.integers(1, 32) | st.floats(0.5, 40),
    rslora=st.booleans(),
    rank_pattern=st.dictionaries(patterns, st.integers(1, 12), max_size=3),
    alpha_pattern=st.dictionaries(patterns, st.integers(1, 64), max_size=3),
    targets=some_names | some_regex | st.sampled_from(["all-linear", "All-Linear"]),
    exclude=st.none() | some_names | some_regex,
    indices=st.none() | st.integers(0, 2) | st.lists(st.integers(0, 3), max_size=2),
    layers_pattern=st.sampled_from([None, "layers", ["h", "layers"], "blocks"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_every_setting_means_what_it_means_in_peft(
    tmp_path: Path, model: nn.Module, base: BaseModel, targets: Any, exclude: Any, **drawn: Any
) -> None:
    options: dict[str, Any] = {"exclude_modules": exclude}
    indices, layers_pattern = drawn.pop("indices"), drawn.pop("layers_pattern")
    if not isinstance(targets, str) and indices is not None:
        options |= {"layers_to_transform": indices}
        options |= {"layers_pattern": layers_pattern} if indices != [] else {}
    try:
        adapter = write_adapter(tmp_path, base, targets=targets, **drawn, **options)
    except ArtifactError:  # nothing is selected: PEFT refuses that as well
        assume(False)
    compare(read_artifact(adapter, base, LIMITS), model, adapter)


def test_rslora_is_not_plain_lora(tmp_path: Path, base: BaseModel) -> None:
    plain = read_artifact(write_adapter(tmp_path / "a", base, rank=16), base, LIMITS)
    rslora = read_artifact(write_adapter(tmp_path / "b", base, rank=16, rslora=True), base, LIMITS)
    assert {weights.scaling for weights in plain.delta.values()} == {1.0}
    assert {weights.scaling for weights in rslora.delta.values()} == {4.0}


@pytest.mark.parametrize("fan_in_fan_out", [True, False])
def test_conv1d_needs_no_other_shapes(tmp_path: Path, fan_in_fan_out: bool) -> None:
    model = load(tiny_model(tmp_path / "gpt2", "gpt2"))
    base = base_model_of(model)
    adapter = write_adapter(
        tmp_path / "adapter", base, targets=["c_attn", "mlp.c_proj"], fan_in_fan_out=fan_in_fan_out
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        compare(read_artifact(adapter, base, LIMITS), model, adapter)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3", "gpt_neox", "opt"])
def test_other_families(tmp_path: Path, family: str) -> None:
    model = load(tiny_model(tmp_path / "model", family))
    base = base_model_of(model)
    adapter = write_adapter(tmp_path / "adapter", base, targets="all-linear", rank=3)
    artifact = read_artifact(adapter, base, LIMITS)
    assert artifact.delta.keys() == base.modules.keys()
    compare(artifact, model, adapter)


INITS = [True, False, "gaussian", "orthogonal", "eva", "mica"]


@pytest.mark.parametrize("init", INITS)
def test_what_peft_saves_is_read(tmp_path: Path, directory: Path, base: BaseModel, init: Any) -> None:
    """The file that save_pretrained writes, with the keys of the PEFT that is installed."""
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM")
    config.eva_config = peft.EvaConfig() if init == "eva" else None
    trained = peft.get_peft_model(load(directory), config)
    pretend_training(trained)
    trained.save_pretrained(tmp_path)
    artifact = read_artifact(tmp_path, base, LIMITS)
    assert artifact.peft_version == peft.__version__
    assert artifact.base_model_name == str(directory)
    assert len(artifact.delta) == len(base.modules)
    compare(artifact, load(directory), tmp_path)


def test_an_adapter_saved_without_a_task_is_served(tmp_path: Path, directory: Path, base: BaseModel) -> None:
    """PEFT then writes ``auto_mapping``, naming the class it was trained on."""
    trained = peft.get_peft_model(load(directory), peft.LoraConfig(init_lora_weights=False))
    trained.save_pretrained(tmp_path)
    assert '"auto_mapping": {' in (tmp_path / "adapter_config.json").read_text()
    compare(read_artifact(tmp_path, base, LIMITS), load(directory), tmp_path)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_inits_that_change_the_base(
    tmp_path: Path, directory: Path, base: BaseModel, init: Any, rslora: bool
) -> None:
    """Refused as they are; served once converted, and then exact on the pristine base."""
    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "up_proj"],
        init_lora_weights=init,
        task_type="CAUSAL_LM",
        use_rslora=rslora,
    )
    trained = peft.get_peft_model(load(directory), config)
    start = tmp_path / "start"
    trained.peft_config["default"].init_lora_weights = True
    trained.save_pretrained(start)
    trained.peft_config["default"].init_lora_weights = init
    pretend_training(trained)
    expected = logits(trained)

    trained.save_pretrained(tmp_path / "raw")
    with pytest.raises(ArtifactError, match=f"init_lora_weights='{init}' is not served"):
        read_artifact(tmp_path / "raw", base, LIMITS)

    trained.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(start))
    artifact = read_artifact(tmp_path / "converted", base, LIMITS)
    assert artifact.rank == 8, "conversion doubles the rank"
    served = load(directory)
    for name, weights in artifact.delta.items():
        served.get_parameter(f"{name}.weight").data += weights.scaling * (weights.b @ weights.a)
    torch.testing.assert_close(logits(served), expected, rtol=1e-3, atol=1e-3)


def test_a_fresh_adapter_does_nothing_and_is_refused(
    tmp_path: Path, directory: Path, base: BaseModel
) -> None:
    peft.get_peft_model(load(directory), peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="would do nothing"):
        read_artifact(tmp_path, base, LIMITS)


def test_pickles_of_peft_are_refused(tmp_path: Path, directory: Path, base: BaseModel) -> None:
    trained = peft.get_peft_model(
        load(directory), peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM")
    )
    trained.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ArtifactError, match=r"adapter_model.bin' is a pickle"):
        read_artifact(tmp_path, base, LIMITS)
    trained.save_pretrained(tmp_path)  # the remedy
    read_artifact(tmp_path, base, LIMITS)


def test_a_renamed_tensor_is_what_peft_only_warns_about(
    tmp_path: Path, model: nn.Module, base: BaseModel
) -> None:
    adapter = write_adapter(tmp_path / "a", base)
    broken = Path(shutil.copytree(adapter, tmp_path / "b"))
    tensors = {
        key.replace("0.self_attn", "0.attention"): value
        for key, value in load_file(adapter / WEIGHTS_NAME).items()
    }
    save_file(tensors, broken / WEIGHTS_NAME)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        peft.PeftModel.from_pretrained(copy.deepcopy(model), broken)
    with pytest.raises(ArtifactError, match=r"0\.attention.*no such linear layers.*; .*no tensors"):
        read_artifact(broken, base, LIMITS)


@torch.no_grad()
def pretend_training(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.numel()))
