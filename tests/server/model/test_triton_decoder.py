"""The fused decoder on Triton kernels: it passes the probe, and steps aside where they don't run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manylora.server.errors import ConfigError
from manylora.server.kernels.reference.attention import plan_attention as reference_plan
from manylora.server.model.decoders import fused, generic
from manylora.server.model.decoders.fused import FusedDecoder, native_backend
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.decoders.paged import planner_for
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda import attention, backend, trial
from manylora.server.kernels.cuda.backend import TritonStep

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda")


@pytest.fixture
def loaded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model, on a machine where Triton is what kernels are written in."""
    monkeypatch.setattr(fused, "native_backend", lambda _: TritonStep)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(tiny_llama, dtype="fp32", device=device, max_model_len=None)


@pytest.mark.sweep  # interpreted, the probe takes minutes
@pytest.mark.timeout(1800)
def test_it_passes_the_probe(loaded: LoadedModel) -> None:
    decoder = next(decoder_candidates(loaded))
    assert (decoder.name, decoder.kernels) == ("fused", "triton")
    pool = PagePool(decoder.modules, 1 << 22, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
    assert probe(loaded.hf, decoder, loaded.dtype) < 1e-4
    assert 0 < probe_adapters(loaded.hf, decoder, pool, loaded.dtype) < 1e-4


def test_pytorch_runs_where_triton_fails(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("Failed to find\n C compiler.")

    monkeypatch.setattr(backend, "trial", fails)
    with caplog.at_level(logging.INFO):
        names = [(decoder.name, decoder.kernels) for decoder in decoder_candidates(loaded)]
    assert names == [("fused", "pytorch"), ("generic", "pytorch")]
    reason = "Triton's kernels don't run here: RuntimeError: Failed to find C compiler."
    assert [record.getMessage() for record in caplog.records] == [f"PyTorch kernels: {reason}"]
    with pytest.raises(ConfigError, match="--kernels native: Triton's kernels don't run here"):
        FusedDecoder(loaded.hf, 64, "native")


def test_a_refused_decoder_is_followed_by_pytorch(loaded: LoadedModel) -> None:
    assert [decoder.kernels for decoder in decoder_candidates(loaded)] == ["triton", "pytorch", "pytorch"]


def test_the_backend_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_backend(CUDA) is TritonStep
    assert native_backend(torch.device("cpu")) is not TritonStep
    monkeypatch.setitem(sys.modules, "manylora.server.kernels.cuda.backend", None)
    assert str(native_backend(CUDA)).startswith("Triton can't be imported: ")


def test_the_generic_decoder_attends_in_triton(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic, "planner_for", lambda *_: attention.plan_attention)
    decoder = GenericDecoder(loaded.hf)
    pool = PagePool(decoder.modules, 1 << 22, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
    assert probe(loaded.hf, decoder, loaded.dtype) < 1e-4


def test_its_attention_is_tried_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    like = torch.zeros(0)
    assert planner_for({(4, 2, 16, 24)}, like) is reference_plan
    on_gpu: Any = SimpleNamespace(device=CUDA)
    tried: list[object] = []
    monkeypatch.setattr(trial, "attention_trial", lambda shapes, _: tried.append(shapes))
    assert planner_for({(4, 2, 16, 24)}, on_gpu) is attention.plan_attention
    assert tried == [[trial.Heads(4, 2, 16, 24)]]
    assert not caplog.records

    def fails(shapes: object, like: object) -> None:
        raise RuntimeError("no\n compiler")

    monkeypatch.setattr(trial, "attention_trial", fails)
    assert planner_for({(4, 2, 16, 24)}, on_gpu) is reference_plan
    assert "Triton's kernels don't run here: RuntimeError: no compiler" in caplog.text


def test_the_trial_attends_with_heads_of_any_size() -> None:
    device = CUDA if torch.cuda.is_available() else torch.device("cpu")
    trial.attention_trial([trial.Heads(4, 2, 16, 24)], torch.zeros(0, device=device))
