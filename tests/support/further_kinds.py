"""Adapters of the further kinds as PEFT saves them, with options that matter to each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from tests.support.adapter_set import LLAMA_TARGETS, TARGETS

# Name of a case -> its config, for one family's (attention, MLP, last module of the MLP).
CASES: Mapping[str, Callable[[list[str], list[str]], peft.PeftConfig]] = {
    "loha": lambda attention, mlp: peft.LoHaConfig(
        r=3, alpha=5, target_modules=[*attention, *mlp], rank_pattern={attention[0]: 7, mlp[-1]: 9}
    ),
    "loha-some": lambda attention, mlp: peft.LoHaConfig(
        r=12,
        alpha=4,
        target_modules=[*attention, mlp[0]],
        exclude_modules=[attention[1]],
        layers_to_transform=[1],
        alpha_pattern={mlp[0]: 16},
    ),
}
LINEAR_ONLY = ("LOHA", "LOKR", "MISS", "HRA", "DELORA")  # of the kinds: PEFT has no Conv1D for them


def further_cases(family: str) -> tuple[str, ...]:
    """The cases that PEFT can make on a model of ``family``."""
    configs = {name: make(*_modules(family)) for name, make in CASES.items()}
    conv1d = family == "gpt2"
    return tuple(n for n, c in configs.items() if not (conv1d and str(c.peft_type.value) in LINEAR_ONLY))


def write_further_kinds(root: Path, model: Path, family: str) -> dict[str, Path]:
    """An adapter of each case for the tiny model in ``model``."""
    return {
        name: save_with_peft(root / name, model, CASES[name](*_modules(family)), seed=seed)
        for seed, name in enumerate(further_cases(family), 1)
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


def _modules(family: str) -> tuple[list[str], list[str]]:
    attention, mlp = TARGETS.get(family, LLAMA_TARGETS)
    return [*attention], [*mlp]
