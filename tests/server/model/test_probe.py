"""The probe and the survey: a decoder that does not compute what the model computes is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from manylora.server.errors import ModelRefused
from manylora.server.kernels.inputs import AdapterPages, StepInputs
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, describe_base, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.tiny_models import FAMILIES, FUSED_FAMILIES, costly, tiny_model


def load(directory: Path, dtype: str = "fp32") -> LoadedModel:
    return load_model(directory, dtype=dtype, device="cpu", max_model_len=None)


def ready(decoder: Decoder, loaded: LoadedModel) -> Decoder:
    decoder.allocate(torch.zeros(1024, dtype=loaded.dtype), PROBE_BLOCKS, 64)
    return decoder


@pytest.mark.slow
@pytest.mark.parametrize("generic", [True, False], ids=["generic", "fused"])
@pytest.mark.parametrize("family", costly(FAMILIES, fused=False))
def test_decoders_agree_with_the_original(tmp_path: Path, family: str, generic: bool) -> None:
    if not generic and family not in FUSED_FAMILIES:
        return
    loaded = load(tiny_model(tmp_path, family))
    decoder = GenericDecoder(loaded.hf) if generic else FusedDecoder(loaded.hf, 512)
    assert probe(loaded.hf, ready(decoder, loaded), loaded.dtype) < 2e-5


@pytest.mark.parametrize("kernels", ["pytorch", "auto"])
def test_in_bf16_it_allows_for_rounding(tiny_llama: Path, kernels: str) -> None:
    loaded = load(tiny_llama, "bf16")
    decoder = ready(FusedDecoder(loaded.hf, 512, kernels), loaded)
    assert 1e-4 < probe(loaded.hf, decoder, loaded.dtype) < 0.1


PERTURBATIONS = {
    "query weight": lambda layer: layer.qkv[0].add_(0.5),
    "norm": lambda layer: layer.post_norm.mul_(1.05),
    "down projection": lambda layer: layer.down.copy_(layer.down.flip(0)),
}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_wrong_weight_is_found_out(tmp_path: Path, name: str) -> None:
    model = tiny_model(tmp_path, "llama-untied-bias")
    loaded, untouched = load(model), load(model)
    decoder = FusedDecoder(loaded.hf, 512)
    with torch.no_grad():
        PERTURBATIONS[name](decoder.weights.layers[1])
    with pytest.raises(ModelRefused, match="fused decoder disagrees with LlamaForCausalLM"):
        probe(untouched.hf, ready(decoder, loaded), loaded.dtype)


class Altered:
    """A decoder that gets something wrong."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.name = "altered"
        self.kernels = "altered"
        self.modules = decoder.modules

    def step(self, inputs: StepInputs) -> torch.Tensor:
        logits: torch.Tensor = self._decoder.step(self.see(inputs))
        return self.say(logits)

    def see(self, inputs: StepInputs) -> StepInputs:
        return inputs

    def say(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class ForgetsPositions(Altered):
    def see(self, inputs: StepInputs) -> StepInputs:
        inputs.positions[:] -= inputs.positions[0]
        return inputs


class MixesUpRows(Altered):
    def say(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.flip(0)


class SaysNaN(Altered):
    def say(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, torch.nan)


@pytest.mark.parametrize("kind", [ForgetsPositions, MixesUpRows, SaysNaN])
def test_a_wrong_decoder_is_found_out(tiny_llama: Path, kind: type[Altered]) -> None:
    loaded = load(tiny_llama)
    decoder = ready(FusedDecoder(loaded.hf, 512), loaded)
    with pytest.raises(ModelRefused, match="altered decoder disagrees"):
        probe(loaded.hf, kind(decoder), loaded.dtype)  # type: ignore[arg-type]


class ForgetsAdapters(Altered):
    def see(self, inputs: StepInputs) -> StepInputs:
        return replace(inputs, lora=None)


class IgnoresWeights(Altered):
    def see(self, inputs: StepInputs) -> StepInputs:
        if inputs.lora is not None:
            inputs.lora.weight[:] = 1.0
        return inputs


class GivesTheBaseAnAdapter(Altered):
    """Index -1 is the last slot: met in a real server."""

    def see(self, inputs: StepInputs) -> StepInputs:
        lora = inputs.lora
        if lora is None or (np.diff(lora.start) > 0).all():
            return inputs
        count = len(inputs.context)
        last = len(lora.adapters) - 1
        everyone = replace(
            lora,
            start=np.arange(count + 1, dtype=np.int32),
            adapter=np.full(count, last, np.int32),
            weight=np.ones(count, np.float32),
        )
        return replace(inputs, lora=everyone)


class ForgetsVectors(Altered):
    forgotten = "gain"

    def see(self, inputs: StepInputs) -> StepInputs:
        lora = inputs.lora
        if lora is None:
            return inputs
        return replace(inputs, lora=replace(lora, adapters=tuple(map(self._without, lora.adapters))))

    def _without(self, pages: AdapterPages) -> AdapterPages:
        if pages.vectors is None:
            return pages
        nothing = np.zeros(len(pages.rank), np.int64)
        return replace(pages, vectors=replace(pages.vectors, **{self.forgotten: nothing}))


class ForgetsConstants(ForgetsVectors):
    forgotten = "constant"


class ForgetsInputs(ForgetsVectors):
    forgotten = "input_gain"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ForgetsAdapters,
        IgnoresWeights,
        GivesTheBaseAnAdapter,
        ForgetsVectors,
        ForgetsConstants,
        ForgetsInputs,
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wrong_adapter_arithmetic_is_found_out(tmp_path: Path, family: str, kind: type[Altered]) -> None:
    loaded = load(tiny_model(tmp_path, family))
    decoder = next(decoder_candidates(loaded))
    pool = PagePool(decoder.modules, 1 << 20, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, 64)
    assert probe_adapters(loaded.hf, decoder, pool, loaded.dtype) < 1e-4
    assert pool.used_bytes == 0
    altered = kind(decoder)
    probe(loaded.hf, altered, loaded.dtype)  # type: ignore[arg-type]  # the base alone is right
    with pytest.raises(ModelRefused, match="adapters on the altered decoder"):
        probe_adapters(loaded.hf, altered, pool, loaded.dtype)  # type: ignore[arg-type]
    assert pool.used_bytes == 0


def test_adapters_are_not_probed_where_there_is_no_room(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(tiny_llama)
    decoder = next(decoder_candidates(loaded))
    pool = PagePool(decoder.modules, 1024, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, 64)
    assert probe_adapters(loaded.hf, decoder, pool, loaded.dtype) == 0.0
    assert "not probed" in caplog.text
    assert pool.used_bytes == 0


def test_the_probe_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Hooks and the attention function are there only while a step runs."""
    loaded = load(tiny_model(tmp_path, "gemma2"))
    ids = torch.arange(30)[None]
    before = loaded.hf(input_ids=ids).logits
    implementation = loaded.hf.config._attn_implementation
    probe(loaded.hf, ready(GenericDecoder(loaded.hf), loaded), loaded.dtype)
    assert torch.equal(loaded.hf(input_ids=ids).logits, before)
    assert loaded.hf.config._attn_implementation == implementation


def test_a_model_without_pluggable_attention(tmp_path: Path) -> None:
    loaded = load(tiny_model(tmp_path, "llama"))
    loaded.hf.__class__ = type("OldForCausalLM", (type(loaded.hf),), {"_supports_attention_backend": False})
    with pytest.raises(ModelRefused, match="OldForCausalLM does not support a pluggable attention"):
        GenericDecoder(loaded.hf)


def test_a_family_that_has_none() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("bloom", hidden_size=32, n_head=2, n_layer=1, vocab_size=100)
    with pytest.raises(ModelRefused, match="BloomForCausalLM"):
        GenericDecoder(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize("argument", ["s_aux", "position_bias"])
def test_attention_arguments_that_are_not_implemented(tiny_llama: Path, argument: str) -> None:
    """A model whose attention adds something of its own is refused, not served without it."""
    loaded = load(tiny_llama)
    attention = loaded.hf.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *a, **k: forward(*a, **{**k, argument: torch.zeros(1)})
    with pytest.raises(ModelRefused, match=argument):
        GenericDecoder(loaded.hf)


class Experts(nn.Module):
    """Half of the rows go to each of two linear layers, by a router that sees them all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 1, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat, out = x.flatten(0, 1), x.new_zeros(x.shape).flatten(0, 1)
        choice = self.router(flat)[:, 0] > 0
        for expert, rows in zip(self.experts, (choice, ~choice), strict=True):
            out[rows] = expert(flat[rows])
        return out.view(x.shape)


def test_linears_that_do_not_see_every_row_are_not_adaptable(tmp_path: Path) -> None:
    loaded = load(tiny_model(tmp_path, "gemma2"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in loaded.hf.model.layers:
            layer.mlp = Experts(64)
    decoder = GenericDecoder(loaded.hf)
    names = {m.name for m in decoder.modules}
    assert "model.layers.0.mlp.router" in names
    assert "model.layers.0.self_attn.q_proj" in names
    assert not any("experts" in name for name in names)
    assert probe(loaded.hf, ready(decoder, loaded), loaded.dtype) < 1e-4


def test_a_linear_that_later_sees_fewer_rows_fails_loudly(tmp_path: Path) -> None:
    """Adding deltas to the wrong rows would be silent."""
    harness = EngineHarness(tiny_model(tmp_path / "model", "gemma2"))
    hf = harness.loaded.hf
    for layer in hf.model.layers:
        layer.mlp = Experts(64)
        layer.mlp.router.weight.fill_(0)
    all_to_one = [layer.mlp.experts[1] for layer in hf.model.layers]
    decoder = harness.decoder = GenericDecoder(hf)
    harness.base = describe_base(harness.loaded, decoder, "base")
    assert all(any(hf.get_submodule(m.name) is e for m in decoder.modules) for e in all_to_one)
    harness.pool = PagePool(decoder.modules, 1 << 20, torch.float32, torch.device("cpu"))
    decoder.allocate(harness.pool.data, 9, 64)
    adapter = write_adapter(tmp_path / "adapter", harness.base, targets=["experts.1"])
    row = harness.sequence(range(10), (harness.load(adapter), 1.0))
    harness.new_engine(num_blocks=9).add(row)
    for layer in hf.model.layers:
        layer.mlp.router.weight.normal_()
    with pytest.raises(AssertionError, match="does not see every row"):
        harness.engine.step()


def test_a_step_before_allocating_is_a_defect(tiny_llama: Path) -> None:
    decoder = FusedDecoder(load(tiny_llama).hf, 512)
    with pytest.raises(AssertionError, match="allocate"):
        decoder.step(None)  # type: ignore[arg-type]
