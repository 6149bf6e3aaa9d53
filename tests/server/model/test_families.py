"""Every family of the fused decoder against the original model: the probe, rotary tables, merging, docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.server.kernels.cpu import NativeStep
from manylora.server.model.decoders.families import FAMILIES
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from tests.support.adapter_set import recorded_logits
from tests.support.decoder_logits import logits_of
from tests.support.engine_harness import EngineHarness
from tests.support.families_section import SECTION, table
from tests.support.tiny_models import FUSED_FAMILIES, ROPES, tiny_model

BLOCKS = 40


def fused(
    directory: Path, dtype: str, kernels: str = "auto", max_len: int | None = None
) -> tuple[LoadedModel, FusedDecoder, PagePool]:
    """The model in a fused decoder that is ready to step."""
    loaded = load_model(directory, dtype=dtype, device="cpu", max_model_len=max_len)
    decoder = next(decoder_candidates(loaded, kernels))
    assert isinstance(decoder, FusedDecoder)
    pool = PagePool(decoder.modules, 8 << 20, loaded.dtype, loaded.device, decoder, tables=decoder.tables)
    decoder.allocate(pool.data, max(BLOCKS, PROBE_BLOCKS), 64)
    return loaded, decoder, pool


@torch.no_grad()
def original(directory: Path, tokens: list[int]) -> torch.Tensor:
    """What transformers says in one go."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("family", FUSED_FAMILIES)
def test_the_probe_of_a_family(tmp_path: Path, family: str) -> None:
    """The base and synthetic adapters, in float32 and in the native kernels where they run."""
    directory = tiny_model(tmp_path, family)
    for dtype, most in (("fp32", 2e-5), ("bf16", 0.1)):
        loaded, decoder, pool = fused(directory, dtype)
        if dtype == "bf16" and NativeStep.unsupported(decoder.weights) is None:
            assert decoder.kernels.startswith("cpu-")
        assert probe(loaded.hf, decoder, loaded.dtype) < most
        assert probe_adapters(loaded.hf, decoder, pool, loaded.dtype) < most


@pytest.mark.parametrize("some", [{"mlp_only_layers": [0, 2]}, {"decoder_sparse_step": 2}])
def test_experts_in_some_layers(tmp_path: Path, some: dict[str, Any]) -> None:
    """The other layers have an MLP of another width. Both forms of the kernels, in chunks."""
    directory = tiny_model(tmp_path, "qwen3_moe", num_hidden_layers=4, intermediate_size=112, **some)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 256, 90)]
    loaded, decoder, pool = fused(directory, "fp32")
    assert_close(logits_of(decoder, tokens, [40, 1, 49]), original(directory, tokens))
    assert probe_adapters(loaded.hf, decoder, pool, loaded.dtype) < 2e-5
    loaded, native, pool = fused(directory, "bf16")
    assert native.kernels.startswith("cpu-")
    assert probe(loaded.hf, native, loaded.dtype) < 0.1
    assert probe_adapters(loaded.hf, native, pool, loaded.dtype) < 0.1
    native.take_over(loaded.hf)
    assert logits_of(native, tokens, [90]).isfinite().all()


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_tables_beyond_the_original_length(tmp_path: Path, rope: str) -> None:
    """In chunks, with contexts that are longer than the positions the model was first trained for."""
    settings: dict[str, Any] = {"rope_parameters": ROPES[rope]}
    if rope == "longrope":
        settings["original_max_position_embeddings"] = 128
    directory = tiny_model(tmp_path, "phi3" if rope == "longrope" else "llama", **settings)
    _, decoder, _ = fused(directory, "fp32", max_len=512)
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 256, 300)]
    expected = original(directory, tokens)
    assert_close(logits_of(decoder, tokens, [7, 150, 1, 1, 141]), expected)
    plain = {"rope_type": "default", "rope_theta": 1e4}
    other = tiny_model(tmp_path / "plain", "llama", rope_parameters=plain)
    if rope != "longrope":  # the test can tell
        assert float((original(other, tokens) - expected).abs().max()) > 0.05 * float(expected.abs().max())


def test_short_texts_have_the_factors_for_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "rope_parameters": ROPES["longrope"],
        "original_max_position_embeddings": 128,
    }
    directory = tiny_model(tmp_path, "phi3", **settings)
    loaded, short, _ = fused(directory, "fp32")
    assert loaded.max_model_len == 128
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 256, 100)]
    expected = original(directory, tokens)
    assert_close(logits_of(short, tokens, [60, 40]), expected)
    loaded, long, _ = fused(directory, "fp32", max_len=129)
    changed = logits_of(long, tokens, [60, 40])
    assert float((changed - expected).abs().max()) > 0.01 * float(expected.abs().max())
    assert probe(loaded.hf, long, loaded.dtype) < 2e-5


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3", "olmo3"])
def test_windows_shorter_than_the_context(tmp_path: Path, family: str) -> None:
    directory = tiny_model(tmp_path, family, sliding_window=40)
    _, decoder, _ = fused(directory, "fp32")
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, 256, 200)]
    assert_close(logits_of(decoder, tokens, [100, 1, 99]), original(directory, tokens))


@pytest.mark.parametrize("family", FUSED_FAMILIES)
def test_the_prefix_cache_changes_no_bit(tmp_path: Path, family: str) -> None:
    """Of the native kernels where they run: a prompt of which most is cached is answered as a new one."""
    harness = EngineHarness(tiny_model(tmp_path, family), dtype="bf16", max_batch_tokens=32)
    rows = [harness.sequence(range(40, 120), max_tokens=6) for _ in range(2)]
    with recorded_logits() as logits:
        answers = [harness.run(row)[0].token_ids for row in rows]
    assert [row.num_cached_tokens for row in rows] == [0, 64]
    assert answers[0] == answers[1]
    assert torch.equal(*(torch.stack(logits[row.id]) for row in rows))


def test_the_table_in_the_docs() -> None:
    assert SECTION.text() == table(), "run: make docs"
    assert all(family.title in SECTION.text() for family in FAMILIES.values())
