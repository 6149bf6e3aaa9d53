"""A base of random weights with the shape of a real one, made on the spot: no model is at hand everywhere."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.adapters import LinearLayer, linear_layers

_SPECIALS = ("<pad>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class BaseSize:
    """The sizes of a decoder of the Llama family."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int

    def config(self) -> dict[str, object]:
        """As ``config.json`` has it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 257,
            "eos_token_id": 258,
            "pad_token_id": 256,
        }


LLAMA_8B = BaseSize(32, 4096, 14336, 32, 8, 128, 128256, 8192)
SMALL = BaseSize(4, 1024, 4096, 8, 4, 128, 32000, 4096)
TINY = BaseSize(2, 64, 128, 4, 2, 16, 288, 512)


def write_base(directory: Path, size: BaseSize, device: torch.device) -> Path:
    """Write a base of ``size`` in bf16, its weights drawn on ``device``, and a tokenizer of its vocabulary.

    Activations keep their size from layer to layer, and logits differ enough for greedy answers to vary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(size.config(), indent=1) + "\n")
    tokenizer(size.vocabulary).save_pretrained(directory)
    generator = torch.Generator(device).manual_seed(0)
    layers = linear_layers(directory)
    files: dict[str, str] = {}
    for number in range(size.layers):
        prefix = f"model.layers.{number}."
        own = [layer for layer in layers if layer.name.startswith(prefix)]
        tensors = {f"{layer.name}.weight": _matrix(layer, generator) for layer in own}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(size.hidden, dtype=torch.bfloat16)
        files |= _save(tensors, directory / f"layer-{number:03}.safetensors")
    table = LinearLayer("", size.hidden, size.vocabulary)
    tensors = {
        "model.embed_tokens.weight": _matrix(table, generator),
        "lm_head.weight": _matrix(table, generator),
        "model.norm.weight": torch.ones(size.hidden, dtype=torch.bfloat16),
    }
    files |= _save(tensors, directory / "tables.safetensors")
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index) + "\n")
    return directory


def _matrix(layer: LinearLayer, generator: torch.Generator) -> torch.Tensor:
    """Rows of length one on average: a product is about as large as what it is made of."""
    shape, device = (layer.out_features, layer.in_features), generator.device
    spread = 1.5 / math.sqrt(layer.in_features)
    drawn = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, spread, generator=generator)
    return drawn.cpu()


def _save(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, str]:
    save_file(tensors, path, metadata={"format": "pt"})
    return dict.fromkeys(tensors, path.name)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A token for each byte; the others are words that no text becomes, but that answers may have."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += _SPECIALS
    tokens += [f"w{number}" for number in range(vocabulary - len(tokens))]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(_SPECIALS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=_SPECIALS[0], bos_token=_SPECIALS[1], eos_token=_SPECIALS[2]
    )
    fast.chat_template = _TEMPLATE
    return fast
