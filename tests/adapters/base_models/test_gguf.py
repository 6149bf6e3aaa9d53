"""Conversion of a GGUF file to a Hugging Face directory, compared with transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from manylora.adapters.base_models.gguf.architectures import ARCHITECTURES
from manylora.adapters.base_models.gguf.convert import convert_gguf
from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.errors import BaseModelError
from tests.support.gguf_file import HEADS, HIDDEN, write_gguf


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_conversion_equals_transformers(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    file = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    out = tmp_path / "out"
    out.mkdir()
    moves: list[tuple[int, int]] = []
    convert_gguf(file, out, lambda done, total: moves.append((done, total)))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    ours = AutoModelForCausalLM.from_pretrained(out)
    assert ours.dtype == torch.bfloat16
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    for key in (
        "rope_parameters",
        "rms_norm_eps",
        "num_key_value_heads",
        "head_dim",
        "eos_token_id",
        "vocab_size",
    ):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    assert ours.config.tie_word_embeddings is tied
    assert moves[-1] == (len(load_file(out / "model.safetensors")),) * 2


def test_converted_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for pre, number in (("smollm", ["1", "2"]), ("gpt-2", ["12"])):
        out = tmp_path / pre
        out.mkdir()
        convert_gguf(write_gguf(tmp_path / f"{pre}.gguf", pre=pre), out, lambda *_: None)
        tokenizer = AutoTokenizer.from_pretrained(out)
        text = "<|im_start|>the é 12"
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        assert tokens == ["<|im_start|>", "t", "he", "Ġ", "Ã", "©", "Ġ", *number]
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert rendered == "hi"


def test_converted_sentencepiece(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ordinary = {"▁": -9.0, "h": -8.0, "e": -7.0, "l": -6.0, "he": -1.0, "el": -2.0, "▁he": -3.0, "ll": -4.0}
    special = {"<unk>": 2, "<s>": 3, "</s>": 3, "<end_of_turn>": 3, "  ": 4}
    pieces = [f"<0x{byte:02X}>" for byte in range(128, 256)]
    tokens = [*special, *pieces, *ordinary]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*special.values(), *[6] * len(pieces), *[1] * len(ordinary)],
        "tokenizer.ggml.scores": [*[0.0] * (len(special) + len(pieces)), *ordinary.values()],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }

    def converted(**further: Any) -> Any:
        file = write_gguf(
            tmp_path / "m.gguf", tokenizer="llama", pre="default", metadata={**metadata, **further}
        )
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        convert_gguf(file, out, lambda *_: None)
        return out

    out = converted()
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = tokenizer.convert_ids_to_tokens(tokenizer("hell é").input_ids)
    assert found == ["<s>", "▁he", "ll", "▁", "<0xC3>", "<0xA9>"]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 3]
    out = converted(**{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = tokenizer.convert_ids_to_tokens(tokenizer("hell<end_of_turn>   he").input_ids)
    assert found == ["<s>", "he", "ll", "<end_of_turn>", "  ", "▁he"]
    assert tokenizer.decode(tokenizer("hell   he").input_ids, skip_special_tokens=True) == "hell   he"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"rope_scaling": gguf.RopeScalingType.LONGROPE}, "RoPE scaling 'longrope'"),
        ({"pre": "jais-2"}, "pre-tokenizer 'jais-2'"),
        ({"tokenizer": "rwkv"}, "tokenizer 'rwkv'"),
        ({"last": "rope_freqs.weight"}, "not the factors of Llama 3"),
        ({"last": "ssm_norm.weight"}, "tensor 'ssm_norm.weight'"),
    ],
)
def test_what_is_not_converted_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(BaseModelError, match=message):
        convert_gguf(write_gguf(tmp_path / "m.gguf", **overrides), tmp_path, lambda *_: None)


def test_not_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x" * 64)
    with pytest.raises(BaseModelError, match=r"m\.gguf is not a GGUF file"):
        convert_gguf(file, tmp_path, lambda *_: None)


def test_names() -> None:
    module_name = ARCHITECTURES["llama"].module_name
    assert module_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert module_name("blk.0.attn_q.bias") == "model.layers.0.self_attn.q_proj.bias"
    assert module_name("token_embd.weight") == "model.embed_tokens.weight"
    for unknown in ("blk.0.ssm_in.weight", "blk.0.attn_q.scale", "token_embd.bias", "blk.x.attn_q.weight"):
        assert module_name(unknown) is None


def test_llama3_factors_become_the_settings_they_were_made_from(tmp_path: Path) -> None:
    from transformers import AutoConfig, LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {
        "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, rope_parameters=settings)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 50000.0 ** (torch.arange(0, HIDDEN // HEADS, 2) * HEADS / HIDDEN)
    assert not torch.allclose(scaled, plain)
    file = write_gguf(tmp_path / "m.gguf", rope_factors=(plain / scaled).numpy())
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(file, out, lambda *_: None)
    assert AutoConfig.from_pretrained(out).rope_parameters == settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.type", "adapter", "holds no model"),
        ("split.count", 3, "one of 3 parts: join them"),
        ("llama.expert_count", 8, "llama.expert_count = 8 is not taken into account"),
        ("llama.attention.sliding_window", 4096, "is not taken into account"),
        ("llama.some.novelty", 1.5, "llama.some.novelty = 1.5 is not taken into account"),
        ("llama.attention.value_length", 8, "keys have 16 dimensions"),
        ("tokenizer.ggml.token_type", [1, 1], "types of them"),
        ("tokenizer.ggml.merges", ["t"], "is no pair of tokens"),
        ("tokenizer.ggml.bos_token_id", 99999, "which is no token"),
        ("llama.block_count", 0, "not a count"),
    ],
)
def test_metadata_that_can_not_be_taken_into_account(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    file = write_gguf(tmp_path / "m.gguf", metadata={key: value})
    with pytest.raises(BaseModelError, match=message) as refused:
        convert_gguf(file, tmp_path, lambda *_: None)
    assert "\n" not in str(refused.value)


def test_idle_metadata_is_no_fault(tmp_path: Path) -> None:
    idle = {"llama.expert_count": 0, "general.name": "x", "split.count": 0, "quantize.imatrix.file": "y"}
    assert GgufModel(write_gguf(tmp_path / "m.gguf", metadata=idle)).quantized


@pytest.mark.parametrize("length", [3, 40, 900, 5000, -40])
def test_a_truncated_file(tmp_path: Path, length: int) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(BaseModelError, match=r"m\.gguf") as refused:
        convert_gguf(file, tmp_path, lambda *_: None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", [8, 16])
def test_counts_beyond_all_measure(tmp_path: Path, place: int) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    content = bytearray(file.read_bytes())
    content[place : place + 8] = (1 << 60).to_bytes(8, "little")
    file.write_bytes(content)
    with pytest.raises(BaseModelError, match="the limit is"):
        convert_gguf(file, tmp_path, lambda *_: None)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken"])
def test_words_are_cut_as_transformers_cuts_them(tmp_path: Path, pre: str) -> None:
    from transformers import AutoTokenizer
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    file = write_gguf(tmp_path / "m.gguf", pre=pre)
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(file, out, lambda *_: None)
    ours = AutoTokenizer.from_pretrained(out)
    architecture, fields, _ = get_gguf_tokenizer(str(file))
    theirs, _ = convert_gguf_tokenizer(architecture, fields)
    for text in ("the 12345 e\u0301 th't  x\n\n y", " a", "<|im_start|>the"):
        ids = ours(text, add_special_tokens=False).input_ids
        composed = text if pre != "qwen2" else text.replace("e\u0301", "\u00e9")
        assert ids == theirs.encode(composed, add_special_tokens=False).ids
    begins = ours("a").input_ids[0] == ours.bos_token_id
    assert begins == (pre != "qwen2")
