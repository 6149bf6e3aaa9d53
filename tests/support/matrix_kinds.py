"""Adapters whose change of a weight is dense, sparse, orthogonal or made of blocks, as PEFT saves them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import peft
import torch

from tests.support.adapter_set import LLAMA_TARGETS, TARGETS
from tests.support.further_kinds import save_with_peft


class Targets(NamedTuple):
    """Names of the linear layers in the blocks of a family."""

    attention: list[str]
    mlp: list[str]

    @property
    def every(self) -> list[str]:
        return [*self.attention, *self.mlp]


Make = Callable[[Targets], peft.PeftConfig]
CASES: Mapping[str, Make] = {
    "oft": lambda t: peft.OFTConfig(oft_block_size=8, target_modules=t.every),
    "oft-few": lambda t: peft.OFTConfig(
        r=5,
        oft_block_size=0,
        block_share=True,
        use_cayley_neumann=False,
        target_modules=[t.attention[0], t.mlp[-1]],
    ),
    "coft": lambda t: peft.OFTConfig(oft_block_size=16, coft=True, eps=0.5, target_modules=t.attention),
    "boft": lambda t: peft.BOFTConfig(boft_block_size=8, target_modules=t.every),
    "boft-few": lambda t: peft.BOFTConfig(
        boft_block_size=0, boft_block_num=2, boft_n_butterfly_factor=2, target_modules=[t.mlp[-1]]
    ),
    "fourierft": lambda t: peft.FourierFTConfig(n_frequency=900, scaling=40.0, target_modules=t.every),
    "fourierft-few": lambda t: peft.FourierFTConfig(
        n_frequency=3, n_frequency_pattern={t.attention[0]: 7}, random_loc_seed=3, target_modules=t.every
    ),
    "waveft": lambda t: peft.WaveFTConfig(n_frequency=300, scaling=2.0, target_modules=t.every),
    "waveft-few": lambda t: peft.WaveFTConfig(
        n_frequency=9,
        scaling=4.0,
        wavelet_family="sym4",
        proportional_parameters=True,
        target_modules=t.every,
    ),
    "waveft-plain": lambda t: peft.WaveFTConfig(
        n_frequency=20, scaling=9.0, use_idwt=False, target_modules=t.attention
    ),
    "randlora": lambda t: peft.RandLoraConfig(r=8, randlora_alpha=3, target_modules=t.every),
    "randlora-seed": lambda t: peft.RandLoraConfig(
        r=5,
        randlora_alpha=2,
        save_projection=False,
        projection_prng_key=9,
        target_modules=[t.attention[0], *t.mlp],
    ),
    "randlora-sparse": lambda t: peft.RandLoraConfig(
        r=7, randlora_alpha=2, save_projection=False, very_sparse=True, target_modules=t.attention
    ),
    "hira": lambda t: peft.HiraConfig(r=4, rank_pattern={t.attention[0]: 7}, target_modules=t.every),
    "deft": lambda t: peft.DeftConfig(r=4, alpha=6, target_modules=t.every),
    "deft-qr": lambda t: peft.DeftConfig(
        r=3, decomposition_method="qr", para=True, target_modules=t.attention
    ),
    "frod": lambda t: peft.FrodConfig(sparse_rate=0.03, progressbar=False, target_modules=t.every),
    "c3a": lambda t: peft.C3AConfig(
        block_size=32, block_size_pattern={t.attention[0]: 8}, target_modules=[t.attention[0], *t.mlp]
    ),
    "road": lambda t: peft.RoadConfig(group_size=8, target_modules=t.every),
    "road-2": lambda t: peft.RoadConfig(group_size=4, variant="road_2", target_modules=[t.attention[0]]),
    "road-4": lambda t: peft.RoadConfig(group_size=16, variant="road_4", target_modules=[t.mlp[0]]),
    "shira": lambda t: peft.ShiraConfig(r=2, target_modules=t.every),
    "supertuning": lambda t: peft.SupertuningConfig(sparsity=0.95, target_modules=t.every),
    "supra": lambda t: peft.SupertuningConfig(sparsity=0.999, r=3, target_modules=[*t.attention, t.mlp[0]]),
    "peanut": lambda t: peft.PeanutConfig(r=4, depth=1, act_fn="gelu", target_modules=t.every),
    "psoft": lambda t: peft.PsoftConfig(r=6, target_modules=t.every),
    "psoft-low": lambda t: peft.PsoftConfig(
        r=5,
        psoft_svd="lowrank",
        random_seed=4,
        ab_svd_init="pissa_init",
        use_cayley_neumann=True,
        cayley_neumann_eps=0.5,
        target_modules=t.mlp,
    ),
    "osf": lambda t: peft.OSFConfig(effective_rank=50, rank_pattern={"o_proj": 0.9}, target_modules=t.every),
    "glora": lambda t: peft.GloraConfig(r=3, target_modules=t.every),
    "glora-vector": lambda t: peft.GloraConfig(
        config_A_B="vector", config_C="vector", config_D_E="vector", target_modules=t.attention
    ),
    "glora-few": lambda t: peft.GloraConfig(
        config_A_B="constant", config_C="none", config_D_E="none", target_modules=[t.mlp[0]]
    ),
    "beft": lambda t: peft.BeftConfig(target_modules=t.every),
}
# Kinds that PEFT has for Conv1D too.
CONV1D = ("fourierft", "waveft", "randlora", "hira", "deft", "frod")


def matrix_cases(family: str) -> tuple[str, ...]:
    """The cases that PEFT can make on a model of ``family``."""
    return tuple(name for name in CASES if family != "gpt2" or name.startswith(CONV1D))


def write_matrix_kinds(root: Path, model: Path, family: str) -> dict[str, Path]:
    """An adapter of each case for the tiny model in ``model``."""
    targets = Targets(*(list(names) for names in TARGETS.get(family, LLAMA_TARGETS)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on bases that are not saved
        configs = {name: CASES[name](targets) for name in matrix_cases(family)}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of what PEFT draws to begin with
        return {
            name: save_with_peft(root / name, model, config, seed=seed)
            for seed, (name, config) in enumerate(configs.items(), 1)
        }
