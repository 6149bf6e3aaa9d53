"""GGUF files of families beyond Llama: the weights and the logits of the model that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.errors import BaseModelError
from manylora.server.model.loading.loader import decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe
from tests.support.gguf_models import write_gguf_model, write_gguf_values
from tests.support.packed_models import assert_probed, assert_same
from tests.support.tiny_models import ROPES, tiny_model

_GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64}
_LONG = {**ROPES["longrope"], "short_factor": [1.0] * 16 + [1.1] * 8, "long_factor": [1.0] * 4 + [3.0] * 20}
# What a file of the family says, or leaves to be known of the architecture.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "granite": ("granite", {}),
    "phi3": ("phi3", {"num_key_value_heads": 2}),
    "phi3-window": ("phi3", {"sliding_window": 24}),
    "phi3-long": ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 128}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "gemma": ("gemma", {"head_dim": 64}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": (
        "gemma3",
        {**_GEMMA, "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    ),
    "gemma3-scaled": (
        "gemma3",
        {
            **_GEMMA,
            "final_logit_softcapping": 5.0,
            "layer_types": ["sliding_attention"] * 2,
            "rope_parameters": {
                "full_attention": ROPES["linear"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "yarn": ("qwen3", {"head_dim": 64, "rope_parameters": ROPES["yarn"]}),
}


def mix(name: str) -> str:
    """Types as llama.cpp mixes them."""
    return "Q6_K" if any(part in name for part in ("attn_v", "ffn_down", "token_embd")) else "Q4_K"


def write(tmp_path: Path, case: str, **metadata: Any) -> Path:
    family, settings = CASES[case]
    model = tiny_model(tmp_path / "model", family, hidden_size=256, intermediate_size=256, **settings)
    return write_gguf_model(model, tmp_path / "base.gguf", mix, **metadata)


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_the_model_it_was_made_from(tmp_path: Path, case: str) -> None:
    base = resolve_model(str(write(tmp_path, case)), tmp_path / "data")
    loaded = load_model(base, dtype="fp32", device="cpu", max_model_len=None)
    assert_same(loaded, write_gguf_values(tmp_path / "model", tmp_path / "values", mix))
    assert_probed(loaded)


@pytest.mark.parametrize("case", CASES)
def test_native_kernels_multiply_by_the_codes(tmp_path: Path, case: str) -> None:
    base = resolve_model(str(write(tmp_path, case)), tmp_path / "data")
    loaded = load_model(base, dtype="bf16", device="cpu", max_model_len=None)
    decoder = next(decoder_candidates(loaded, "native"))
    decoder.allocate(torch.zeros(64, dtype=torch.bfloat16), PROBE_BLOCKS, PROBE_ROWS)
    assert decoder.kernels.startswith("cpu-")
    probe(loaded.hf, decoder, loaded.dtype)


@pytest.mark.parametrize(
    ("case", "metadata", "message"),
    [
        ("granite", {"granite.rope.scaling.finetuned": False}, "without rotary embedding"),
        ("granite", {"granite.logit_scale": 0.0}, "not a positive number"),
        ("phi3", {"phi3.rope.dimension_count": 66}, "heads have 64 dimensions"),
        (
            "phi3",
            {"phi3.rope.scaling.type": "linear", "phi3.rope.scaling.factor": 2.0},
            "a Phi with RoPE scaling 'linear'",
        ),
        ("phi3-long", {"phi3.rope.scaling.original_context_length": 0}, "not a count"),
        ("phi3-long", {"phi3.rope.scaling.original_context_length": 1}, "no context"),
        ("granite", {"granite.attention.head_count": 512}, "the model is 256 wide"),
        ("phi3-long", {"phi3.rope.scaling.type": "yarn"}, "for long and short texts"),
        ("gemma2", {"gemma2.attention.sliding_window": -1}, "not a count"),
        ("gemma3", {"gemma3.block_count": 1 << 30}, "tensors of 6 layers"),
        ("gemma3", {"gemma3.attention.sliding_window_pattern": "all"}, "not a count"),
        ("gemma3", {"gemma3.vision.block_count": 27}, "is not taken into account"),
        ("olmo3", {"olmo2.attention.sliding_window_pattern": [True]}, "for each of 2 layers"),
        ("yarn", {"qwen3.rope.scaling.yarn_log_multiplier": 0.1}, "is not taken into account"),
        ("yarn", {"qwen3.rope.scaling.factor": -1.0}, "not a positive number"),
    ],
)
def test_what_contradicts_itself_or_is_not_known(
    tmp_path: Path, case: str, metadata: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, case, **metadata)
    with pytest.raises(BaseModelError, match=message) as refused:
        resolve_model(str(file), tmp_path / "data")
    assert "\n" not in str(refused.value)


def test_other_factors_are_another_model(tmp_path: Path) -> None:
    """Two files of one header at the same path."""
    file = write(tmp_path, "phi3-long")
    before = resolve_model(str(file), tmp_path / "data")
    content = file.read_bytes()
    factors = torch.tensor(_LONG["long_factor"]).numpy().tobytes()
    assert content.count(factors) == 1
    file.write_bytes(content.replace(factors, torch.full((24,), 2.5).numpy().tobytes()))
    after = resolve_model(str(file), tmp_path / "data")
    assert AutoConfig.from_pretrained(before).rope_parameters["long_factor"] == _LONG["long_factor"]
    assert AutoConfig.from_pretrained(after).rope_parameters["long_factor"] == [2.5] * 24


def test_what_older_files_do_not_say(tmp_path: Path) -> None:
    base = resolve_model(
        str(write(tmp_path, "gemma2", **{"gemma2.attention.sliding_window": 0})), tmp_path / "data"
    )
    assert AutoConfig.from_pretrained(base).sliding_window == 4096


def test_a_pattern_of_windows_as_a_count(tmp_path: Path) -> None:
    key = "gemma3.attention.sliding_window_pattern"
    base = resolve_model(str(write(tmp_path, "gemma3", **{key: 2})), tmp_path / "data")
    types = AutoConfig.from_pretrained(base).layer_types
    assert types == ["sliding_attention", "full_attention"] * 3
