"""A tiny model in a GGUF file, for tests of what reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "1 2"]


def write_gguf(file: Path, *, tied: bool = True, pre: str = "smollm", **overrides: Any) -> Path:
    """A tiny random Llama in GGUF, each kind of tensor stored in a format of its own.

    ``metadata`` among the ``overrides`` replaces or adds entries.
    """
    metadata = overrides.pop("metadata", {})
    writer = gguf.GGUFWriter(file, overrides.pop("architecture", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(overrides.pop("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    for key, value in metadata.items():
        for entries in writer.kv_data:
            entries.pop(key, None)
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value), _item_type(value))
    if "rope_scaling" in overrides:
        writer.add_rope_scaling_type(overrides.pop("rope_scaling"))
    random = np.random.default_rng(0)
    if "rope_factors" in overrides:
        writer.add_tensor("rope_freqs.weight", overrides.pop("rope_factors"))

    def add(name: str, rows: int, columns: int = HIDDEN, kind: str = "Q8_0") -> None:
        weight = random.standard_normal((rows, columns)).astype(np.float32)
        kind_id = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(weight, kind_id), raw_dtype=kind_id)

    add("token_embd.weight", len(tokens))
    if not tied:
        add("output.weight", len(tokens), kind="F16")
    kv = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        for name, rows in (("attn_q", HIDDEN), ("attn_k", kv), ("attn_v", kv), ("attn_output", HIDDEN)):
            add(f"blk.{layer}.{name}.weight", rows, kind="Q4_1")
        add(f"blk.{layer}.ffn_gate.weight", INTERMEDIATE, kind="Q4_0")
        add(f"blk.{layer}.ffn_up.weight", INTERMEDIATE)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INTERMEDIATE)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", random.random(HIDDEN, dtype=np.float32))
    writer.add_tensor(overrides.pop("last", "output_norm.weight"), random.random(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _item_type(value: Any) -> gguf.GGUFValueType | None:
    return gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
