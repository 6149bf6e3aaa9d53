"""--deterministic: which decoder it takes on which device, and what it refuses, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.server.errors import ConfigError
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.inputs import VectorPages
from manylora.server.model.decoders import fused
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.taken import TakenAdapters
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.loading.synthetic import COUNT, synthetic
from manylora.server.model.pages.pool import PagePool
from manylora.server.options.settings import Settings
from tests.support.tiny_models import tiny_model


def load(directory: Path, dtype: str = "fp32") -> LoadedModel:
    return load_model(directory, dtype=dtype, device="cpu", max_model_len=None)


def test_on_a_cpu_the_native_kernels_run_which_are_so_anyway(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, "bf16")
    (decoder,) = decoder_candidates(loaded, deterministic=True)
    assert isinstance(decoder, FusedDecoder)
    assert decoder.kernels == NativeStep.name
    assert decoder.taken is None, "they take every adapter"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (None, "--deterministic: the weights are float32, the kernels need bfloat16"),
        ("mps", "--deterministic: there are kernels of our own for NVIDIA GPUs and CPUs, not for MPS"),
        ("xpu", "--deterministic: .*not for XPU"),
    ],
)
def test_where_no_kernels_of_ours_run(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, said: str
) -> None:
    """PyTorch's never take their place."""
    if device is not None:
        real, there = fused.native_backend, torch.device(device)
        monkeypatch.setattr(fused, "native_backend", lambda _: real(there))
    with pytest.raises(ConfigError, match=said):
        next(decoder_candidates(load(tiny_llama), deterministic=True))


def test_families_of_the_generic_decoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--deterministic needs the fused decoder: model type 'gpt2'"):
        next(decoder_candidates(load(tiny_model(tmp_path, "gpt2")), deterministic=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernels": "pytorch"}, "not with kernels pytorch"),
        ({"tensor_parallel_size": 2}, "not with tensor_parallel_size"),
        ({"auto_merge": True}, "auto_merge merges depends on the traffic"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(deterministic=True, **options)
    assert Settings(deterministic=True).deterministic
    Settings(**options)


def vectors(modules: int, **where: int) -> VectorPages:
    """Those of an adapter that has some at a module each."""
    tables = {name: np.full(modules, -1, np.int64) for name in VectorPages.__annotations__}
    for name, module in where.items():
        tables[name][module] = 0
    return VectorPages(**tables)


def test_adapters_that_are_taken(tiny_llama: Path) -> None:
    loaded = load(tiny_llama)
    decoder = FusedDecoder(loaded.hf, loaded.max_model_len, "pytorch")
    taken, count = TakenAdapters(decoder.weights, decoder.modules), len(decoder.modules)
    down, gate = (decoder.weights.modules_of(1, name)[0] for name in ("down", "gate_up"))
    for own in (None, vectors(count), vectors(count, gain=0, constant=gate, input_gain=down)):
        taken.check(own)
    for kind, what in (
        ("change", "whole weights"),
        ("partner", "outputs by each other"),
        ("input_blocks", "inputs by each other"),
        ("input_gain", "the scale of inputs"),
    ):
        with pytest.raises(ArtifactError, match=f"changes {what} .*layers.1.mlp.gate_proj"):
            taken.check(vectors(count, **{kind: gate}))
    assert [m for m in range(count) if taken.scales_inputs(m)] == [
        decoder.weights.modules_of(layer, "down")[0] for layer in range(len(decoder.weights.layers))
    ]


def test_the_probe_makes_up_no_adapter_that_is_refused(tiny_llama: Path) -> None:
    loaded = load(tiny_llama)
    decoder = FusedDecoder(loaded.hf, loaded.max_model_len, "pytorch")
    taken = TakenAdapters(decoder.weights, decoder.modules)
    pool = PagePool(
        decoder.modules,
        1 << 22,
        loaded.dtype,
        loaded.device,
        decoder,
        taken=taken.check,
        tables=decoder.tables,
    )
    scaled = []
    for number in range(COUNT):
        deltas = synthetic(loaded.hf, decoder, number, taken.scales_inputs)
        scaled += [name for name, delta in deltas.items() if delta.input_scale is not None]
        pool.pack(str(number), deltas)
    assert scaled == ["model.layers.1.mlp.down_proj"]
    with pytest.raises(ArtifactError, match="--deterministic on a GPU takes no adapter"):
        pool.pack("2", synthetic(loaded.hf, decoder, 2))


@pytest.mark.slow
@pytest.mark.sweep  # interpreted, the probe takes minutes
@pytest.mark.timeout(1800)
def test_it_passes_the_probe(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    from manylora.server.kernels.cuda.backend import TritonStep

    monkeypatch.setattr(fused, "native_backend", lambda _: TritonStep)
    loaded = load_model(
        tiny_llama, dtype="fp32", device="cuda" if torch.cuda.is_available() else "cpu", max_model_len=None
    )
    (decoder,) = decoder_candidates(loaded, deterministic=True)
    assert isinstance(decoder, FusedDecoder)
    assert decoder.taken is not None
    pool = PagePool(decoder.modules, 1 << 22, loaded.dtype, loaded.device, decoder, taken=decoder.taken.check)
    decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
    assert decoder.kernels == "triton-deterministic"
    assert probe(loaded.hf, decoder, loaded.dtype) < 1e-4
    scales = decoder.taken.scales_inputs
    assert 0 < probe_adapters(loaded.hf, decoder, pool, loaded.dtype, scales_inputs=scales) < 1e-4
