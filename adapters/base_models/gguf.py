"""Converts a GGUF file of the Llama architecture into a Hugging Face model directory.

Quantized tensors are dequantized to fp32 and rounded once to bf16, so the result is what
transformers computes from the same file, without reading the file's 100,000 metadata strings once per
use. What is not converted, and refused by name: other architectures, tokenizers other than byte-level
BPE, and tensors this file does not know.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manylora.adapters.errors import BaseModelError

if TYPE_CHECKING:
    import torch

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # GGUF token type of <|im_start|> and its like
# GGUF's names of pre-tokenizers that isolate digits before GPT-2's rule, and of GPT-2's rule alone.
_ISOLATE_DIGITS = {"smollm", "starcoder", "refact", "command-r"}
_PRE_TOKENIZERS = _ISOLATE_DIGITS | {"gpt-2"}

Fields = dict[str, Any]


def convert_gguf(file: Path, directory: Path, advance: Callable[[int, int], None]) -> None:
    """Write ``model.safetensors`` (bf16), configuration, tokenizer and chat template into ``directory``.

    Args:
        file: the GGUF file.
        directory: an existing, empty directory.
        advance: called with (tensors done, tensors in all).

    Raises:
        BaseModelError: the file holds something that is not converted.
        OSError: reading or writing failed.
    """
    import gguf  # noqa: PLC0415  (slow to import; only needed once per model)

    from manylora.adapters.format.saving import save_tensors  # noqa: PLC0415

    try:
        reader = gguf.GGUFReader(file)
    except ValueError as error:
        raise BaseModelError(f"{file.name}: not a GGUF file: {error}") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture, scaling = fields.get("general.architecture"), fields.get("llama.rope.scaling.type", "none")
    if architecture != "llama" or scaling != "none":
        raise BaseModelError(
            f"{file.name}: architecture {architecture!r} with RoPE scaling {scaling!r} is not converted"
        )
    _write_tokenizer(directory, fields)
    tensors = {}
    for done, tensor in enumerate(reader.tensors):
        advance(done, len(reader.tensors))
        name, weight = _convert_tensor(tensor, fields)
        tensors[name] = weight
    save_tensors(tensors, directory / "model.safetensors", {"format": "pt"})
    tied = "lm_head.weight" not in tensors
    _write_json(directory / "config.json", _model_config(fields, tied))
    _write_json(directory / "generation_config.json", _token_ids(fields))
    advance(len(reader.tensors), len(reader.tensors))


def module_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor: ``blk.3.attn_q.weight`` is a ``self_attn.q_proj.weight``.

    Raises:
        BaseModelError: a tensor that a Llama model does not have.
    """
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block and block[2] in _BLOCK:
        return f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"
    outer = re.fullmatch(r"(\w+)\.weight", name)
    if outer and outer[1] in _OUTER:
        return f"{_OUTER[outer[1]]}.weight"
    raise BaseModelError(f"tensor {name!r} is not converted")


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's order of the rows of q and k.

    GGUF pairs the two halves of each head's rotary dimensions as (0, 1), (2, 3), …; Hugging Face keeps
    the halves apart. ``weight`` is [heads * head_dim, in].
    """
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _convert_tensor(tensor: Any, fields: Fields) -> tuple[str, torch.Tensor]:
    import gguf  # noqa: PLC0415
    import torch  # noqa: PLC0415

    # A copy, because tensors stored as fp32 come as a read-only view of the file.
    weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
    heads: int = fields["llama.attention.head_count"]
    if tensor.name.endswith("attn_q.weight"):
        weight = unpermute(weight, heads)
    elif tensor.name.endswith("attn_k.weight"):
        weight = unpermute(weight, int(fields.get("llama.attention.head_count_kv", heads)))
    return module_name(tensor.name), weight.contiguous()


def _token_ids(fields: Fields) -> Fields:
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{kind}_token_id": f"tokenizer.ggml.{name}_token_id" for kind, name in kinds.items()}
    return {name: int(fields[key]) for name, key in keys.items() if key in fields}


def _model_config(fields: Fields, tied: bool) -> Fields:
    def value(key: str, otherwise: Any = None) -> Any:
        found = fields.get(f"llama.{key}", otherwise)
        if found is None:
            raise BaseModelError(f"the GGUF file lacks llama.{key}")
        return found

    heads = value("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("embedding_length") // heads,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("rope.freq_base", 10000.0)},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
        **_token_ids(fields),
    }


def _write_tokenizer(directory: Path, fields: Fields) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    kind, rule = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or rule not in _PRE_TOKENIZERS:
        raise BaseModelError(f"tokenizer {kind!r} with pre-tokenizer {rule!r} is not converted")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", False)), use_regex=True
    )
    digits = [pre_tokenizers.Digits(individual_digits=True)] if rule in _ISOLATE_DIGITS else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, of_type in zip(tokens, types, strict=True) if of_type == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))

    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys = {f"{kind}_token": f"tokenizer.ggml.{name}_token_id" for kind, name in kinds.items()}
    special = {name: tokens[fields[key]] for name, key in keys.items() if key in fields}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    _write_json(directory / "tokenizer_config.json", config)
    template = fields.get("tokenizer.chat_template")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(file: Path, content: Fields) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
