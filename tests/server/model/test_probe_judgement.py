"""The probe accepts every right decoder, however the model's numbers are, and refuses every wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.inputs import StepInputs
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.loader import LoadedModel, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from tests.support.odd_models import ODD, make_odd
from tests.support.planted_faults import FAULTS, plant
from tests.support.tiny_models import FAMILIES, FUSED_FAMILIES, costly, tiny_model

# A dtype and what computes in it. Native kernels are for bf16.
COMPUTING = (
    ("bf16", "native"),
    ("bf16", "pytorch"),
    ("bf16", "generic"),
    ("fp32", "pytorch"),
    ("fp32", "generic"),
)


def load(directory: Path, dtype: str, quantize: str = "none") -> LoadedModel:
    return load_model(directory, dtype=dtype, device="cpu", max_model_len=None, quantize=quantize)


def decoder_of(loaded: LoadedModel, kernels: str) -> Decoder:
    if kernels == "generic":
        return GenericDecoder(loaded.hf)
    try:
        return FusedDecoder(loaded.hf, 512, kernels)
    except ConfigError as error:
        pytest.skip(str(error))


def pool_for(decoder: Decoder, loaded: LoadedModel) -> PagePool:
    pool = PagePool(decoder.modules, 1 << 23, loaded.dtype, loaded.device, decoder, tables=decoder.tables)
    decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
    return pool


def accept(loaded: LoadedModel, kernels: str) -> float:
    decoder = decoder_of(loaded, kernels)
    pool = pool_for(decoder, loaded)
    alone = probe(loaded.hf, decoder, loaded.dtype)
    return max(alone, probe_adapters(loaded.hf, decoder, pool, loaded.dtype))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.sweep)])
@pytest.mark.parametrize(("dtype", "kernels"), COMPUTING)
@pytest.mark.parametrize("family", costly(FAMILIES))
def test_right_decoders_of_every_family(
    tmp_path: Path, family: str, dtype: str, kernels: str, seed: int
) -> None:
    if kernels != "generic" and family not in FUSED_FAMILIES:
        return
    error = accept(load(tiny_model(tmp_path, family, seed=seed), dtype), kernels)
    assert error < (0.1 if dtype == "bf16" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kernels"), COMPUTING)
@pytest.mark.parametrize("kind", ODD)
def test_right_decoders_of_odd_models(tmp_path: Path, kind: str, dtype: str, kernels: str) -> None:
    loaded = load(tiny_model(tmp_path, "llama", **ODD[kind][1]), dtype)
    make_odd(loaded.hf, kind)
    accept(loaded, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize(("dtype", "kernels"), [c for c in COMPUTING if c[1] != "native"])
@pytest.mark.parametrize("kind", ["one layer", "deep", "sharp attention", "massive channel"])
def test_right_decoders_of_quantized_bases(
    tmp_path: Path, kind: str, dtype: str, kernels: str, quantize: str
) -> None:
    pytest.importorskip("bitsandbytes")
    plain = load(tiny_model(tmp_path / "plain", "llama", intermediate_size=128, **ODD[kind][1]), "fp32")
    make_odd(plain.hf, kind)
    plain.hf.save_pretrained(tmp_path / "odd")
    for file in (tmp_path / "plain").glob("tokenizer*"):
        (tmp_path / "odd" / file.name).write_bytes(file.read_bytes())
    accept(load(tmp_path / "odd", dtype, quantize), kernels)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kernels"), COMPUTING)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_out(tmp_path: Path, fault: str, dtype: str, kernels: str) -> None:
    directory = tiny_model(tmp_path, FAULTS[fault][0])
    right, wrong = load(directory, dtype), load(directory, dtype)
    plant(wrong.hf, fault)
    decoder = decoder_of(right, kernels)
    pool = pool_for(decoder, right)
    with pytest.raises(ModelRefused, match="decoder disagrees with"):
        probe(wrong.hf, decoder, right.dtype)
    with pytest.raises(ModelRefused, match="adapters on the"):
        probe_adapters(wrong.hf, decoder, pool, right.dtype)


class Wrapped:
    """A decoder whose steps or logits are changed."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.name = self.kernels = "wrapped"
        self.modules = decoder.modules

    def step(self, inputs: StepInputs) -> torch.Tensor:
        logits: torch.Tensor = self._decoder.step(inputs)
        return logits


class ReadsAnothersBlocks(Wrapped):
    def step(self, inputs: StepInputs) -> torch.Tensor:
        inputs.block_tables[:] = inputs.block_tables[:1]
        return super().step(inputs)


class ForgetsTheFirstChunk(Wrapped):
    """Keys and values of a later chunk's rows go where the first chunk's were."""

    def step(self, inputs: StepInputs) -> torch.Tensor:
        if inputs.positions[0]:
            inputs.slots[:] -= inputs.positions[0]
        return super().step(inputs)


class OneInfiniteLogit(Wrapped):
    def step(self, inputs: StepInputs) -> torch.Tensor:
        logits = super().step(inputs).clone()
        logits[-1, 3] = torch.inf
        return logits


class OneLogitIsNoNumber(Wrapped):
    def step(self, inputs: StepInputs) -> torch.Tensor:
        logits = super().step(inputs).clone()
        logits[-1, 3] = torch.nan
        return logits


WRONG = [ReadsAnothersBlocks, ForgetsTheFirstChunk, OneInfiniteLogit, OneLogitIsNoNumber]


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_step_is_found_out_in_bf16(tiny_llama: Path, kind: type[Wrapped]) -> None:
    loaded = load(tiny_llama, "bf16")
    decoder = decoder_of(loaded, "pytorch")
    pool_for(decoder, loaded)
    with pytest.raises(ModelRefused, match="wrapped decoder disagrees"):
        probe(loaded.hf, kind(decoder), loaded.dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_without_numbers_is_refused(tiny_llama: Path, value: float) -> None:
    loaded = load(tiny_llama, "fp32")
    with torch.no_grad():
        loaded.hf.model.layers[0].mlp.down_proj.weight[3, 3] = value
    decoder = decoder_of(loaded, "pytorch")
    pool_for(decoder, loaded)
    with pytest.raises(ModelRefused, match="the model's own logits are not all numbers"):
        probe(loaded.hf, decoder, loaded.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_probe_leaves_the_model_alone(tmp_path: Path, family: str) -> None:
    loaded = load(tiny_model(tmp_path, family), "bf16")
    decoder = GenericDecoder(loaded.hf)
    before = {name: parameter.clone() for name, parameter in loaded.hf.named_parameters()}
    ids = torch.arange(30)[None]
    logits = loaded.hf(input_ids=ids).logits
    pool = pool_for(decoder, loaded)
    probe(loaded.hf, decoder, loaded.dtype)
    probe_adapters(loaded.hf, decoder, pool, loaded.dtype)
    after = dict(loaded.hf.named_parameters())
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(loaded.hf(input_ids=ids).logits, logits)
