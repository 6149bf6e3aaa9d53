"""Adapters with virtual tokens, written by PEFT, and PEFT as their oracle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from manylora.adapters.format.base import BaseModel
from tests.support.peft_oracle import summed
from tests.support.tiny_models import tiny_model

# Virtual tokens of one adapter of each sort: fewer than a block, blocks exactly, and some more.
TOKENS = {
    "prompt": 5,
    "p": 16,
    "p-lstm": 7,
    "cpt": 3,
    "multitask": 21,
    "prefix": 19,
    "prefix-mlp": 16,
    "cartridge": 33,
}
_HIDDEN = {"encoder_hidden_size": 24}


def model_for_prefixes(directory: Path, family: str) -> Path:
    """A tiny model whose config names the key heads that it has, which PEFT looks for."""
    other = {"num_key_value_heads": 4} if family in ("gpt2", "gpt_neox", "opt") else {}
    return tiny_model(directory, family, **other)


def soft_prompt_config(name: str, task: str = "CAUSAL_LM", tokens: int | None = None) -> peft.PeftConfig:
    """PEFT's config of one of :data:`TOKENS`."""
    n = TOKENS[name] if tokens is None else tokens
    common: dict[str, Any] = {"task_type": task, "num_virtual_tokens": n}
    ids = {"cpt_token_ids": [*range(40, 40 + n)], "cpt_mask": [1] * n, "cpt_tokens_type_mask": [1] * n}
    made: dict[str, peft.PeftConfig] = {
        "prompt": peft.PromptTuningConfig(**common),
        "p": peft.PromptEncoderConfig(**common, **_HIDDEN),
        "p-lstm": peft.PromptEncoderConfig(**common, **_HIDDEN, encoder_reparameterization_type="LSTM"),
        "cpt": peft.CPTConfig(task_type="CAUSAL_LM", **ids),
        "multitask": peft.MultitaskPromptTuningConfig(**common, num_ranks=3),
        "prefix": peft.PrefixTuningConfig(**common),
        "prefix-mlp": peft.PrefixTuningConfig(**common, **_HIDDEN, prefix_projection=True),
        "cartridge": peft.CartridgeConfig(**common, num_frozen_tokens=2),
    }
    return made[name]


def write_soft_prompt(
    directory: Path,
    model: Path,
    name: str,
    *,
    seed: int = 1,
    labels: Sequence[str] = (),
    tokens: int | None = None,
) -> Path:
    """Let PEFT save what looks like a trained adapter; with ``labels`` it classifies."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # PEFT's remarks on its encoders
        torch.manual_seed(seed)
        base = _base(model, torch.float32, labels)
        config = soft_prompt_config(name, "SEQ_CLS" if labels else "CAUSAL_LM", tokens)
        adapted = peft.get_peft_model(base, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.4 * torch.randn(parameter.shape))
        adapted.eval().save_pretrained(directory)
    if labels:
        base.config.save_pretrained(directory)
    return directory


def write_soft_prompts(root: Path, model: Path) -> dict[str, Path]:
    """One adapter of each of :data:`TOKENS`."""
    return {
        name: write_soft_prompt(root / name, model, name, seed=seed) for seed, name in enumerate(TOKENS, 1)
    }


class SoftPromptPeft:
    """PEFT with a model of its own for each adapter."""

    def __init__(
        self,
        directory: Path,
        paths: Mapping[str, Path],
        *,
        dtype: torch.dtype = torch.float32,
        labels: Sequence[str] = (),
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._of = {
                name: peft.PeftModel.from_pretrained(_base(directory, dtype, labels), path).eval()
                for name, path in paths.items()
            }

    @property
    def names(self) -> frozenset[str]:
        """The adapters."""
        return frozenset(self._of)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], name: str) -> torch.Tensor:
        """Logits [T, V] after each of ``ids``; of an adapter that classifies its scores [1, classes]."""
        return _logits(self._of[name], ids)


class SoftPromptOnSum:
    """PEFT's soft prompt on a base to whose weights those of LoRA adapters are added."""

    def __init__(
        self, directory: Path, base: BaseModel, prompt: Path, members: Sequence[tuple[Path, float]]
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = peft.PeftModel.from_pretrained(summed(directory, base, members), prompt).eval()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits [T, V] after each of ``ids``."""
        return _logits(self._model, ids)


def _base(directory: Path, dtype: torch.dtype, labels: Sequence[str]) -> Any:
    if not labels:
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
    return AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype, **names).eval()


def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Without the rows of virtual tokens, which are rows of some kinds only."""
    multitask = isinstance(model.active_peft_config, peft.MultitaskPromptTuningConfig)
    tasks = {"task_ids": torch.tensor([0])} if multitask else {}
    found: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), **tasks).logits.float()
    return found if found.ndim == 2 else found[0, -len(ids) :]
