"""Adapters that PEFT makes on the embeddings and the head of a tiny model, and PEFT's own logits for them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

GROWN = 300  # tokens of a resized model; tests.support.tiny_models.VOCAB are the base's


def make(path: Path, model: Path, *, seed: int, rows: int | None = None, **options: Any) -> Path:
    """A LoRA as PEFT saves it, every trained parameter random; ``rows``: of the embeddings, resized."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **options)
    return make_any(path, model, config, seed=seed, rows=rows)


def make_any(path: Path, model: Path, config: PeftConfig, *, seed: int, rows: int | None = None) -> Path:
    """An adapter of any kind, as :func:`make` makes a LoRA."""
    base = _resized(model, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on tied weights and saved embeddings
        adapted = get_peft_model(base, config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.15)
        adapted.save_pretrained(path)
    return path


@torch.inference_mode()
def peft_logits(model: Path, path: Path, ids: Sequence[int], rows: int | None = None) -> torch.Tensor:
    """Logits [T, V'] of a full forward over ``ids`` by PEFT with the adapter at ``path``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(_resized(model, rows), path).eval()
    return adapted(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def _resized(model: Path, rows: int | None) -> Any:
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if rows is not None:
        torch.manual_seed(7)
        base.resize_token_embeddings(rows, mean_resizing=False)
    return base
