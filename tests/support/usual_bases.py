"""Shapes of base models of 1 to 70 billion parameters, as their makers publish them."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, Qwen2Config


def _llama(layers: int, width: int, inner: int, heads: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=8, vocab_size=128_256, max_position_embeddings=131_072, **more,
    )  # fmt: skip


def _qwen(layers: int, width: int, inner: int, heads: int) -> Qwen2Config:
    return Qwen2Config(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=8, vocab_size=152_064, max_position_embeddings=32_768,
    )  # fmt: skip


CONFIGS: dict[str, Any] = {
    "1B": _llama(16, 2048, 8192, 32, head_dim=64, tie_word_embeddings=True),
    "3B": _llama(28, 3072, 8192, 24, head_dim=128, tie_word_embeddings=True),
    "8B": _llama(32, 4096, 14_336, 32),
    "14B": _qwen(48, 5120, 13_824, 40),
    "32B": _qwen(64, 5120, 27_648, 40),
    "70B": _llama(80, 8192, 28_672, 64),
}
PARAMETERS = {"1B": 1.236e9, "3B": 3.213e9, "8B": 8.030e9, "14B": 14.77e9, "32B": 32.76e9, "70B": 70.55e9}
LIKE = {
    "1B": "Llama-3.2-1B",
    "3B": "Llama-3.2-3B",
    "8B": "Llama-3.1-8B",
    "14B": "Qwen2.5-14B",
    "32B": "Qwen2.5-32B",
    "70B": "Llama-3.1-70B",
}
