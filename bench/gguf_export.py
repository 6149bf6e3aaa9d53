"""Writes a Llama-family base and its adapters as GGUF in bf16, for llama.cpp.

llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its two halves, so the rows of
W_q and W_k (and of the B of their adapters) are reordered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

Array = npt.NDArray[np.float32]

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def export_base(base: Path, target: Path, pre_tokenizer: str) -> Path:
    """Write the base model in ``base`` to the file ``target``; what is there already is kept.

    ``pre_tokenizer`` is llama.cpp's name for how the tokenizer splits text: ``smollm`` for SmolLM2.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text())
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer, base, config, pre_tokenizer)
    for name, tensor in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        _add_tensor(writer, f"{gguf_name(module)}.weight", reorder(module, config)(tensor.float().numpy()))
    _finish(writer, part, target)
    return target


def export_adapter(base: Path, adapter: Path, target: Path) -> Path:
    """Write the PEFT adapter in ``adapter`` to the file ``target``; what is there already is kept."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text())
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32(
        "adapter.lora.alpha", json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    )
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        array = tensor.float().numpy()
        if side == "B":
            array = reorder(module, config)(array)
        _add_tensor(writer, f"{gguf_name(module)}.weight.lora_{side.lower()}", array)
    _finish(writer, part, target)
    return target


def gguf_name(module: str) -> str:
    """``model.layers.3.self_attn.q_proj`` as llama.cpp calls it: ``blk.3.attn_q``."""
    if module in _TOP:
        return _TOP[module]
    _, _, block, inner = module.split(".", 3)
    return f"blk.{block}.{_NAMES[inner]}"


def reorder(module: str, config: dict[str, Any]) -> Callable[[Array], Array]:
    """What to do with the rows (the outputs) of this module's matrix."""
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config.get("num_key_value_heads", config["num_attention_heads"]),
    }.get(module.rpartition(".")[2])
    if heads is None:
        return lambda array: array
    return lambda array: interleave_halves(array, heads)


def interleave_halves(array: Array, heads: int) -> Array:
    """[heads * hd, n] with each head's rows reordered from 0, 1, ... to 0, hd/2, 1, hd/2 + 1, ..."""
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tensor(writer: gguf.GGUFWriter, name: str, array: Array) -> None:
    if array.ndim == 1:  # norms: llama.cpp wants them in fp32
        writer.add_tensor(name, array)
        return
    kind = gguf.GGMLQuantizationType.BF16
    writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def _finish(writer: gguf.GGUFWriter, part: Path, target: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def _add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    rope = config.get("rope_parameters") or config
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or hidden // heads)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, base: Path, config: dict[str, Any], pre_tokenizer: str) -> None:
    content = json.loads((base / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    by_id = {number: text for text, number in content["model"]["vocab"].items()} | special
    size = config["vocab_size"]
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([control if number in special else normal for number in range(size)])
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    template = base / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())
