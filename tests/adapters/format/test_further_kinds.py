"""Further kinds over generated options: what PEFT saves changes the weights as it does in PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from tests.support.adapters import write_artifact
from tests.support.further_kinds import LINEAR_ONLY, pretend_training

INPUTS, OUTPUTS = 24, 36
LIMITS = Limits(max_rank=64, max_bytes=1 << 24)
Draw = st.DrawFn
GENERATED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a model for each step would make shrinking long
)


class Block(nn.Module):
    """Two modules that adapters may change, registered in another order than they run."""

    def __init__(self, conv1d: bool) -> None:
        super().__init__()
        self.down = Conv1D(INPUTS, OUTPUTS) if conv1d else nn.Linear(OUTPUTS, INPUTS)
        self.up = Conv1D(OUTPUTS, INPUTS) if conv1d else nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.up(x))
        return result


class Model(nn.Module):
    """Two such blocks."""

    def __init__(self, conv1d: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stack = nn.ModuleDict({"layers": nn.ModuleList([Block(conv1d), Block(conv1d)])})
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = nn.Sequential(*self.stack["layers"].children())(x)
        return result


def base_of(model: Model) -> BaseModel:
    sizes = {"down": (OUTPUTS, INPUTS), "up": (INPUTS, OUTPUTS)}
    names = [f"stack.layers.{i}.{part}" for i in range(2) for part in sizes]
    modules = {n: TargetModule(n, *sizes[n.rpartition(".")[2]], bias=True) for n in names}
    return BaseModel("base", "Model", "model", "0" * 8, modules, frozenset())


def some_of(draw: Draw, values: Callable[[str], st.SearchStrategy[Any]]) -> dict[str, Any]:
    """Patterns for some modules, never two for one: PEFT saves them in another order than it was given."""
    keys = draw(st.lists(st.sampled_from(["up", "layers.1.down", r".*\.0\.down"]), unique=True))
    return {key: draw(values(key)) for key in keys}


def ranks(most: int = 40) -> st.SearchStrategy[int]:
    return st.integers(1, most)


ALPHAS = st.sampled_from([1, 4, 7, 16])
SEEDS = st.integers(0, 1 << 32)
DIVISORS = st.sampled_from([1, 2, 3, 4, 6, 12])  # of both widths


def adalora(draw: Draw) -> peft.PeftConfig:
    rank = draw(ranks(9))
    mask = st.lists(st.booleans(), min_size=rank, max_size=rank)
    pruned = draw(st.dictionaries(st.sampled_from(["layers.0.up", "layers.1.down", "layers.1.up"]), mask))
    pattern = {f"stack.{name}.lora_E.default": kept for name, kept in pruned.items()}
    alpha = draw(ALPHAS)
    return peft.AdaLoraConfig(init_r=rank, lora_alpha=alpha, total_step=10, rank_pattern=pattern or None)


def delora(draw: Draw) -> peft.PeftConfig:
    pattern = some_of(draw, lambda _: ranks())
    return peft.DeloraConfig(r=draw(ranks()), rank_pattern=pattern, delora_lambda=draw(st.integers(1, 20)))


def gralora(draw: Draw) -> peft.PeftConfig:
    blocks, hybrid = draw(DIVISORS), draw(st.integers(0, 5))
    rank = blocks * draw(st.integers(1, 3))
    return peft.GraloraConfig(r=rank, gralora_k=blocks, hybrid_r=hybrid, alpha=draw(ALPHAS))


def hra(draw: Draw) -> peft.PeftConfig:
    orthogonal = draw(st.booleans())
    return peft.HRAConfig(r=draw(ranks(12 if orthogonal else 50)), apply_GS=orthogonal)


def loha(draw: Draw) -> peft.PeftConfig:
    rank_pattern, alpha_pattern = some_of(draw, lambda _: ranks(12)), some_of(draw, lambda _: ALPHAS)
    return peft.LoHaConfig(
        r=draw(ranks(12)), alpha=draw(ALPHAS), rank_pattern=rank_pattern, alpha_pattern=alpha_pattern
    )


def lokr(draw: Draw) -> peft.PeftConfig:
    rank_pattern, alpha_pattern = some_of(draw, lambda _: ranks(30)), some_of(draw, lambda _: ALPHAS)
    return peft.LoKrConfig(
        r=draw(ranks(30)),
        alpha=draw(ALPHAS),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        decompose_both=draw(st.booleans()),
        decompose_factor=draw(st.sampled_from([-1, *range(1, 13), 24, 36, 100])),
        init_weights=draw(st.sampled_from([True, False, "lycoris"])),
    )


def miss(draw: Draw) -> peft.PeftConfig:
    form = draw(st.sampled_from([True, False, "bat", "mini"]))
    rank = draw(DIVISORS if form == "bat" else ranks(24))
    return peft.MissConfig(r=rank, init_weights=form, mini_r=draw(DIVISORS))


def pvera(draw: Draw) -> peft.PeftConfig:
    saved, seed = draw(st.booleans()), draw(SEEDS)
    return peft.PveraConfig(r=draw(ranks()), save_projection=saved, projection_prng_key=seed, d_initial=0.5)


def tinylora(draw: Draw) -> peft.PeftConfig:
    return peft.TinyLoraConfig(
        r=draw(ranks()),
        u=draw(st.integers(1, 9)),
        weight_tying=draw(st.floats(0, 1)),
        save_projection=draw(st.booleans()),
        projection_seed=draw(SEEDS),
    )


def unilora(draw: Draw) -> peft.PeftConfig:
    length = draw(st.integers(1, 5000))
    saved, seed = draw(st.booleans()), draw(SEEDS)
    return peft.UniLoraConfig(r=draw(ranks()), theta_d_length=length, save_indices=saved, proj_seed=seed)


def vblora(draw: Draw) -> peft.PeftConfig:
    vectors = draw(st.integers(1, 300))
    return peft.VBLoRAConfig(
        r=draw(ranks(9)),
        num_vectors=vectors,
        vector_length=draw(DIVISORS),
        topk=draw(st.integers(1, min(vectors, 5))),
        save_only_topk_weights=draw(st.booleans()),
        init_vector_bank_bound=0.5,
    )


KINDS: dict[str, Callable[[Draw], peft.PeftConfig]] = {
    "ADALORA": adalora, "DELORA": delora, "GRALORA": gralora, "HRA": hra, "LOHA": loha, "LOKR": lokr,
    "MISS": miss, "PVERA": pvera, "TINYLORA": tinylora, "UNILORA": unilora, "VBLORA": vblora,
}  # fmt: skip
STRINGS_IGNORE_LAYERS = ("GRALORA", "LOHA", "LOKR", "PVERA", "TINYLORA", "VBLORA")  # in PEFT


def compare_with_peft(directory: Path, kind: str, data: st.DataObject) -> None:
    """Draw a config, make and save its adapter with PEFT, and compare the change of every weight."""
    conv1d = kind not in LINEAR_ONLY and data.draw(st.booleans(), "Conv1D")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D, projections and odd ranks
        config = data.draw(st.composite(KINDS[kind])(), "config")
        config.target_modules = data.draw(st.sampled_from([["up", "down"], ["down"], r".*\.1\.(up|down)"]))
        layers_may_be_given = not isinstance(config.target_modules, str) or kind in STRINGS_IGNORE_LAYERS
        if layers_may_be_given and data.draw(st.booleans(), "one layer"):
            config.layers_to_transform = [1]
        if kind == "ADALORA" and config.rank_pattern:  # it names modules
            config.target_modules, config.layers_to_transform = ["up", "down"], None
        if isinstance(config.target_modules, list):
            config.target_modules = set(config.target_modules)
        trained: Any = peft.get_peft_model(Model(conv1d), config).eval()
        pretend_training(trained, seed=data.draw(st.integers(0, 9)))
        trained.save_pretrained(directory)
        loaded: Any = peft.PeftModel.from_pretrained(Model(conv1d), directory).eval()
    plain = Model(conv1d)
    artifact = read_artifact(directory, base_of(plain), LIMITS)
    compared = 0
    for name, module in plain.named_modules():
        if name not in base_of(plain).modules:
            continue
        inputs = torch.eye(base_of(plain).modules[name].in_features)
        with torch.no_grad():
            change = (loaded.base_model.model.get_submodule(name)(inputs) - module(inputs)).T
        found = _change(artifact, name, module)
        if name in artifact.delta:
            compared += 1
        scale = max(1e-3, float(change.abs().max()))
        assert float((found - change).abs().max()) <= 3e-5 * max(scale, 1.0), (name, kind)
    assert compared == len(artifact.delta) > 0


def _change(artifact: Artifact, name: str, module: Any) -> torch.Tensor:
    if name not in artifact.delta:
        return torch.zeros(())
    delta = artifact.delta[name]
    a, b = delta.factors(module.weight.data.T if isinstance(module, Conv1D) else module.weight.data)
    assert a.shape[0] == b.shape[1] == delta.rank <= max(delta.stated_rank, INPUTS)
    return b @ a


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(GENERATED, max_examples=6)
@given(data=st.data())
def test_the_change_is_that_of_peft(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    compare_with_peft(tmp_path_factory.mktemp("kind"), kind, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(GENERATED, max_examples=40)
@given(data=st.data())
def test_the_change_is_that_of_peft_for_many_options(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    compare_with_peft(tmp_path_factory.mktemp("kind"), kind, data)


@pytest.mark.parametrize("form", [True, False, "bat"])
def test_files_of_bone_are_those_of_miss_by_other_names(tmp_path: Path, form: Any) -> None:
    """PEFT up to 0.17 saved them; later ones know them as MiSS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.MissConfig(r=6, init_weights=form, target_modules=["up", "down"])
        trained: Any = peft.get_peft_model(Model(False), config)
        pretend_training(trained)
        trained.save_pretrained(tmp_path / "miss")
    saved = json.loads((tmp_path / "miss" / CONFIG_NAME).read_text())
    options = {key: value for key, value in saved.items() if key not in ("miss_dropout", "mini_r")}
    tensors = load_file(tmp_path / "miss" / WEIGHTS_NAME)
    write_artifact(
        tmp_path / "bone",
        options | {"peft_type": "BONE", "bone_dropout": 0.0},
        {key.replace("miss_block", "bone_block"): tensor for key, tensor in tensors.items()},
    )
    plain = Model(False)
    miss, bone = (read_artifact(tmp_path / kind, base_of(plain), LIMITS) for kind in ("miss", "bone"))
    assert (miss.kind, bone.kind) == ("MISS", "BONE")
    for name in base_of(plain).modules:
        module = plain.get_submodule(name)
        assert torch.equal(_change(miss, name, module), _change(bone, name, module))
