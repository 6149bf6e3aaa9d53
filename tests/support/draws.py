"""Rows to draw tokens from: combinations of sampling parameters, and the arguments of a draw made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from manylora.server.kernels.draws import Draws

PARAMS: tuple[dict[str, float], ...] = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 2.0},
    {"top_p": 0.999999, "temperature": 1.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 3000, "top_p": 0.95, "min_p": 1e-3},
    {"top_k": 10**6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 1e-5, "top_p": 0.99, "temperature": 1.7},
    {"top_k": 7, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7},
    {"top_p": 1e-9},
)


def draws_of(logits: torch.Tensor, params: list[dict[str, float]], uniform: np.ndarray, **more: Any) -> Draws:
    def column(name: str, default: float, dtype: type) -> np.ndarray:
        return np.array([p.get(name, default) for p in params], dtype)

    return Draws(
        logits,
        temperature=column("temperature", 1.0, np.float32),
        top_k=column("top_k", 0, np.int64),
        top_p=column("top_p", 1.0, np.float64),
        min_p=column("min_p", 0.0, np.float32),
        uniform=uniform,
        **more,
    )
