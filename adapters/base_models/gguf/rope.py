"""The rotary embedding of a model in a GGUF file, as transformers' configuration has it."""

from __future__ import annotations

import math
from typing import Any

import torch

from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown

# Llama 3.1 and its successors: the file has the factors, transformers wants what they were made from.
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_CLOSE = 1e-5  # between factors that are the same, stored in float32
_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def rope_parameters(model: GgufModel, head_dim: int) -> dict[str, Any]:
    """Of all layers, or of those that see the whole text; ``head_dim`` counts the dimensions that turn.

    Raises:
        BaseModelError: something is missing, or not known.
    """
    theta = model.positive("rope.freq_base", 10000.0)
    kind = model.value("rope.scaling.type") or "none"
    factors = {texts: model.rope_factors(texts) for texts in ("all", "short", "long")}
    given = {texts for texts, values in factors.items() if values is not None}
    if given == {"all"} and kind == "none":
        return {"rope_theta": theta, **_llama3(model, factors["all"], theta, head_dim)}
    if given == {"short", "long"} and kind in ("none", "longrope"):
        return {"rope_theta": theta, **_longrope(model, factors, head_dim)}
    if given:
        raise BaseModelError(
            f"{model.name}: rotary factors for {' and '.join(sorted(given))} texts with RoPE scaling "
            f"{shown(kind)} are not read"
        )
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": model.positive("rope.scaling.factor")}
    if kind == "yarn":
        return {"rope_theta": theta, **_yarn(model)}
    if kind != "none":
        raise BaseModelError(
            f"{model.name}: architecture {model.architecture.name!r} with RoPE scaling {shown(kind)} is not "
            "read"
        )
    return {"rope_type": "default", "rope_theta": theta}


def _yarn(model: GgufModel) -> dict[str, Any]:
    further = {
        name: model.positive(f"rope.scaling.{key}")
        for key, name in _YARN.items()
        if model.value(f"rope.scaling.{key}") is not None
    }
    return {
        "rope_type": "yarn",
        "factor": model.positive("rope.scaling.factor"),
        "original_max_position_embeddings": model.number("rope.scaling.original_context_length"),
        **further,
    }


def _longrope(model: GgufModel, factors: dict[str, torch.Tensor | None], head_dim: int) -> dict[str, Any]:
    lists = {}
    for texts in ("short", "long"):
        values = factors[texts]
        assert values is not None
        if values.shape != (head_dim // 2,) or not (values.isfinite() & (values > 0)).all():
            raise BaseModelError(
                f"{model.name}: rope_factors_{texts}.weight are not {head_dim // 2} positive numbers"
            )
        lists[f"{texts}_factor"] = values.tolist()
    original = model.number("rope.scaling.original_context_length")
    if original < 2:  # whose logarithm is divided by
        raise model.fault("rope.scaling.original_context_length", "no context")
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        **lists,
    }
    scale = max(model.number("context_length") / original, 1.0)
    usual = math.sqrt(1 + math.log(scale) / math.log(original))
    attention = model.positive("rope.scaling.attn_factor", usual)
    if not math.isclose(attention, usual, rel_tol=_CLOSE):
        found["attention_factor"] = attention
    return found


def _llama3(model: GgufModel, factors: torch.Tensor | None, theta: float, head_dim: int) -> dict[str, Any]:
    assert factors is not None
    factor = float(factors.max())
    wanted = {**_LLAMA3, "factor": factor}
    expected = _llama3_factors(theta, head_dim, factor)
    if len(factors) != len(expected) or not torch.allclose(factors.double(), expected, rtol=_CLOSE, atol=0):
        raise BaseModelError(
            f"{model.name}: its rope_freqs.weight are not the factors of Llama 3, and not read"
        )
    return wanted


def _llama3_factors(theta: float, head_dim: int, factor: float) -> torch.Tensor:
    """By how much Llama 3 divides each rotary frequency [hd / 2] float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    wavelengths = 2 * math.pi * theta**exponents
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] / wavelengths
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / factor + smooth)
    return factors
