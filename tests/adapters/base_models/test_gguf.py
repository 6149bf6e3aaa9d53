"""Conversion of a GGUF file to a Hugging Face directory, compared with transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from manylora.adapters.base_models.gguf.convert import convert_gguf, module_name, unpermute
from manylora.adapters.errors import BaseModelError
from tests.support.gguf_file import write_gguf


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"rope_scaling": gguf.RopeScalingType.YARN}, "RoPE scaling 'yarn'"),
        ({"pre": "llama-bpe"}, "pre-tokenizer 'llama-bpe'"),
        ({"tokenizer": "llama"}, "tokenizer 'llama'"),
        ({"last": "rope_freqs.weight"}, "tensor 'rope_freqs.weight'"),
    ],
)
def test_what_is_not_converted_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(BaseModelError, match=message):
        convert_gguf(write_gguf(tmp_path / "m.gguf", **overrides), tmp_path, lambda *_: None)


def test_not_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x" * 64)
    with pytest.raises(BaseModelError, match=r"m\.gguf: not a GGUF file"):
        convert_gguf(file, tmp_path, lambda *_: None)


def test_names_and_row_order() -> None:
    assert module_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert module_name("token_embd.weight") == "model.embed_tokens.weight"
    with pytest.raises(BaseModelError):
        module_name("blk.0.attn_q.bias")
    # Two heads of four rows: pairs (0, 1), (2, 3) become halves.
    rows = torch.arange(8.0)[:, None]
    assert unpermute(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
