"""Engines whose keys and values are kept in 8 bits, and where that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.reference import coded_cache
from manylora.server.model.decoders import fused
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.loader import decoder_candidates, load_model
from manylora.server.model.loading.preparing import prepare
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def harness(tiny_llama: Path) -> EngineHarness:
    made = EngineHarness(tiny_llama, dtype="bf16", coded_cache=True)
    assert isinstance(made.decoder, FusedDecoder)
    return made


def prepared(model: Path, **options: Any) -> Any:
    """What a server makes of a model: its decoder, probed, and the number of its blocks."""
    settings = Settings(model=str(model), adapter_memory=8 << 20, kv_cache_memory=8 << 20, **options)
    loaded = load_model(model, dtype=settings.dtype, device="cpu", max_model_len=None)
    return prepare(loaded, settings, EngineLimits.of(settings, accelerator=False))


def test_a_row_of_a_mixed_batch_is_that_row_alone(harness: EngineHarness, tmp_path: Path) -> None:
    if not harness.decoder.native:  # type: ignore[attr-defined]
        pytest.skip("the PyTorch kernels promise no bits")
    pages = harness.load(write_adapter(tmp_path / "a", harness.base, rank=4, targets="all-linear"))
    mixes: list[tuple[Any, ...]] = [(), ((pages, 1.0),), ((pages, -0.5),)]
    rows = [harness.sequence(prompt_of(20 + 13 * i, i), *mix) for i, mix in enumerate(mixes)]
    harness.new_engine(max_batch_tokens=30)
    with recorded_logits() as together:
        mixed = harness.run(*rows)
    for i, (row, answer) in enumerate(zip(rows, mixed, strict=True)):
        harness.new_engine()
        same = harness.sequence(prompt_of(20 + 13 * i, i), *mixes[i])
        with recorded_logits() as alone:
            (expected,) = harness.run(same)
        assert answer.token_ids == expected.token_ids
        assert torch.equal(torch.stack(together[row.id]), torch.stack(alone[same.id]))


def test_a_prefix_hit_is_a_cold_run(harness: EngineHarness) -> None:
    harness.new_engine()
    found = []
    for cached in (0, 32):
        row = harness.sequence(prompt_of(40), max_tokens=30)
        with recorded_logits() as logits:
            (answer,) = harness.run(row)
        assert row.num_cached_tokens == cached
        found.append((answer.token_ids, torch.stack(logits[row.id])))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_twice_the_blocks_in_the_same_memory(tiny_llama: Path, dtype: str) -> None:
    in_full, coded = (
        prepared(tiny_llama, dtype=dtype, kv_cache_dtype=kind, max_num_seqs=4096).num_blocks - 1
        for kind in ("auto", "int8")
    )
    per_vector = {"bf16": 32, "fp32": 64}[dtype]  # bytes of 16 elements; 8 bits and a scale take 18
    assert coded == pytest.approx(in_full * per_vector / 18, abs=2)


def test_the_generic_decoder_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8 needs the fused decoder: model type 'gpt2'"):
        prepared(tiny_model(tmp_path, "gpt2"), kv_cache_dtype="int8")


def test_kernels_that_cannot_read_codes_refuse(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Triton:
        name = "triton"
        unsupported = staticmethod(lambda _: None)
        origin = staticmethod(lambda: "")

    monkeypatch.setattr(fused, "native_backend", lambda _: Triton)
    loaded = load_model(tiny_llama, dtype="fp32", device="cpu", max_model_len=None)
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8: the Triton kernels"):
        next(decoder_candidates(loaded, coded_cache=True))


def test_a_model_that_codes_change_too_much_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coded_cache, "LARGEST", 2)  # two bits in place of eight
    with pytest.raises(ModelRefused, match="with --kv-cache-dtype int8"):
        prepared(tiny_llama, dtype="fp32", kv_cache_dtype="int8")
