"""Adapters of the further kinds as PEFT saves them, with options that matter to each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from transformers import AutoModelForCausalLM

from tests.support.adapter_set import LLAMA_TARGETS, TARGETS


class Names(NamedTuple):
    """How the modules of a family are called."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    everything: str = "all-linear"


# Name of a case -> its config.
CASES: Mapping[str, Callable[[Names], peft.PeftConfig]] = {
    "adalora": lambda names: peft.AdaLoraConfig(
        init_r=6,
        lora_alpha=20,
        target_modules=[*names.attention, *names.mlp],
        total_step=10,
        bias="lora_only",
    ),
    "delora": lambda names: peft.DeloraConfig(
        r=5, target_modules=[*names.attention, *names.mlp], rank_pattern={names.mlp[0]: 2}, bias="delora_only"
    ),
    "gralora": lambda names: peft.GraloraConfig(
        r=4, gralora_k=2, alpha=3, target_modules=[*names.attention, *names.mlp]
    ),
    "gralora-hybrid": lambda names: peft.GraloraConfig(
        r=16, gralora_k=8, hybrid_r=3, alpha=3, target_modules=[*names.attention, *names.mlp], bias="all"
    ),
    "hra": lambda names: peft.HRAConfig(r=5, target_modules=[*names.attention, *names.mlp], bias="hra_only"),
    "hra-orthogonal": lambda names: peft.HRAConfig(
        r=8, apply_GS=True, target_modules=[*names.attention, *names.mlp], layers_to_transform=1
    ),
    "hra-many": lambda names: peft.HRAConfig(r=70, target_modules=[names.attention[0], names.mlp[-1]]),
    "loha": lambda names: peft.LoHaConfig(
        r=3,
        alpha=5,
        target_modules=[*names.attention, *names.mlp],
        rank_pattern={names.attention[0]: 7, names.mlp[-1]: 9},
    ),
    "loha-some": lambda names: peft.LoHaConfig(
        r=12,
        alpha=4,
        target_modules=[*names.attention, names.mlp[0]],
        exclude_modules=[names.attention[1]],
        layers_to_transform=[1],
        alpha_pattern={names.mlp[0]: 16},
    ),
    "lokr": lambda names: peft.LoKrConfig(r=3, alpha=4, target_modules=[*names.attention, *names.mlp]),
    "lokr-both": lambda names: peft.LoKrConfig(
        r=2,
        alpha=4,
        target_modules=[*names.attention, *names.mlp],
        decompose_both=True,
        rank_pattern={names.mlp[0]: 3},
        alpha_pattern={names.attention[-1]: 2},
    ),
    "lokr-factor": lambda names: peft.LoKrConfig(
        r=5,
        alpha=4,
        target_modules=[*names.attention, names.mlp[-1]],
        decompose_both=True,
        decompose_factor=2,
    ),
    "lokr-odd-factor": lambda names: peft.LoKrConfig(
        r=2, alpha=4, target_modules=[*names.attention, names.mlp[-1]], decompose_factor=5
    ),
    "lokr-whole": lambda names: peft.LoKrConfig(
        r=64, alpha=64, target_modules=[*names.attention, *names.mlp]
    ),
    "miss": lambda names: peft.MissConfig(
        r=6, target_modules=[*names.attention, *names.mlp], bias="MiSS_only"
    ),
    "miss-all": lambda names: peft.MissConfig(
        r=64, target_modules=[*names.attention, *names.mlp], init_weights=False
    ),
    "miss-mini": lambda names: peft.MissConfig(
        r=5, mini_r=16, target_modules=[*names.attention, *names.mlp], init_weights="mini"
    ),
    "miss-bat": lambda names: peft.MissConfig(
        r=8,
        target_modules=[*names.attention, *names.mlp],
        init_weights="bat",
        exclude_modules=[names.attention[0]],
    ),
    "pvera": lambda names: peft.PveraConfig(
        r=20, target_modules=[*names.attention, *names.mlp], d_initial=0.4
    ),
    "pvera-seed": lambda names: peft.PveraConfig(
        r=20, target_modules=names.everything, d_initial=0.4, save_projection=False, projection_prng_key=77
    ),
    "tinylora": lambda names: peft.TinyLoraConfig(
        r=3, u=5, target_modules=[*names.attention, *names.mlp], bias="tinylora_only"
    ),
    "tinylora-tied": lambda names: peft.TinyLoraConfig(
        r=2, u=7, target_modules=names.everything, weight_tying=0.55, save_projection=False, projection_seed=5
    ),
    "tinylora-one": lambda names: peft.TinyLoraConfig(
        r=90, u=3, target_modules=[*names.attention, names.mlp[-1]], weight_tying=1.0
    ),
    "unilora": lambda names: peft.UniLoraConfig(
        r=3,
        theta_d_length=90,
        target_modules=[*names.attention, *names.mlp],
        proj_seed=11,
        bias="unilora_only",
    ),
    "unilora-long": lambda names: peft.UniLoraConfig(
        r=2, theta_d_length=100_000, target_modules=names.everything
    ),
    "unilora-saved": lambda names: peft.UniLoraConfig(
        r=2, target_modules=[*names.attention, names.mlp[-1]], save_indices=True
    ),
    "vblora": lambda names: peft.VBLoRAConfig(
        r=3,
        num_vectors=20,
        vector_length=16,
        target_modules=[*names.attention, *names.mlp],
        init_vector_bank_bound=0.3,
        bias="vblora_only",
    ),
    "vblora-top": lambda names: peft.VBLoRAConfig(
        r=3,
        num_vectors=300,
        vector_length=32,
        topk=3,
        target_modules=[*names.attention, *names.mlp],
        init_vector_bank_bound=0.3,
        save_only_topk_weights=True,
    ),
    "vblora-one": lambda names: peft.VBLoRAConfig(
        r=2,
        num_vectors=20,
        vector_length=8,
        topk=1,
        target_modules=[*names.attention, *names.mlp],
        init_vector_bank_bound=0.3,
        save_only_topk_weights=True,
    ),
}
LINEAR_ONLY = ("LOHA", "LOKR", "MISS", "HRA", "DELORA", "BONE")  # of the kinds: PEFT has no Conv1D for them


def write_further_kinds(root: Path, model: Path, family: str) -> dict[str, Path]:
    """An adapter of each case for the tiny model in ``model``, but for those that PEFT can't make there."""
    names = Names(*TARGETS.get(family, LLAMA_TARGETS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on projections
        configs = {name: make(names) for name, make in CASES.items()}
    return {
        name: save_with_peft(root / name, model, config, seed=seed)
        for seed, (name, config) in enumerate(configs.items(), 1)
        if family != "gpt2" or config.peft_type.value not in LINEAR_ONLY
    }


def save_with_peft(directory: Path, model: Path, config: peft.PeftConfig, *, seed: int = 0) -> Path:
    """Make the adapter, move all that is trained away from its start, and save it as PEFT does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D, biases and odd ranks
        config.task_type = "CAUSAL_LM"
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        trained: Any = peft.get_peft_model(loaded, config).eval()
        pretend_training(trained, seed)
        trained.save_pretrained(directory)
    return directory


@torch.no_grad()
def pretend_training(model: torch.nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter that is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
