"""A base in 4 or 8 bits: what is refused, what it computes beside PEFT, what it takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.reference.quantized import Int8Linear, dequantize_4bit
from manylora.server.model.decoders import quantize
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, probe
from manylora.server.model.pages.pool import PagePool
from manylora.server.options.settings import Settings
from manylora.server.service import build_service
from tests.support.tiny_models import tiny_model

bnb = pytest.importorskip("bitsandbytes")

KINDS = ("nf4", "int8")
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose widths fit 4 bits."""
    return tiny_model(tmp_path_factory.mktemp("wide"), "llama", intermediate_size=128, head_dim=16)


def load(directory: Path, kind: str, dtype: str = "bf16") -> LoadedModel:
    return load_model(directory, dtype=dtype, device="cpu", max_model_len=None, quantize=kind)


def layer_of(kind: str, inputs: int = 128, outputs: int = 96) -> Any:
    """A layer as transformers makes it from a random weight."""
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, dtype=BF16) * 0.1
    bias = torch.randn(outputs, dtype=BF16)
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=6.0)
    else:
        layer = bnb.nn.Linear4bit(inputs, outputs, compute_dtype=BF16, quant_type="nf4")
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.to(BF16).to("cpu").eval().requires_grad_(False)


def separated(layer: Any) -> Int8Linear:
    holder = torch.nn.ModuleDict({"layer": layer})
    quantize.separate_rows(holder)
    found = holder["layer"]
    assert isinstance(found, Int8Linear)
    return found


def rows_with_outliers() -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(6, 128, dtype=BF16)
    x[1, 5], x[2, [5, 70]], x[4, 127] = 9.0, torch.tensor([-20.0, 7.0], dtype=BF16), 6.0
    x[5] = 0
    return x


@torch.inference_mode()
def test_an_int8_row_is_what_bitsandbytes_computes_for_it_alone() -> None:
    theirs = layer_of("int8")
    ours = separated(layer_of("int8"))
    for row in rows_with_outliers()[:5].split(1):
        assert torch.equal(ours(row), theirs(row))
    assert ours(rows_with_outliers()[5:]).isfinite().all()  # a row of zeros has no scale


@torch.inference_mode()
def test_activations_that_are_not_rounded() -> None:
    """What decoders are compared with: a smooth function, and the rounding one afterwards."""
    layer, x = separated(layer_of("int8")).float(), rows_with_outliers().float()
    rounded = layer(x)
    exact = torch.nn.functional.linear(x, layer.dequantized(), layer.bias)
    with quantize.unrounded_activations(layer):
        torch.testing.assert_close(layer(x), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x), rounded)
    assert 1e-4 < float((rounded - exact).abs().max()) < 0.1


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_each_other(kind: str) -> None:
    x = rows_with_outliers()
    layer = separated(layer_of(kind)) if kind == "int8" else layer_of(kind)
    together, alone = layer(x), torch.cat([layer(row) for row in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-2 if kind == "nf4" else 0)


@torch.inference_mode()
def test_in_bitsandbytes_they_do() -> None:
    """Why 8-bit layers are replaced: when this fails, they need not be any more."""
    layer, x = layer_of("int8"), rows_with_outliers()
    assert not torch.equal(layer(x)[0], layer(x[:1])[0])


@torch.inference_mode()
def test_a_4bit_weight_before_and_after_it_is_laid_out_for_the_cpu() -> None:
    layer = layer_of("nf4")
    before = dequantize_4bit(layer).float()
    layer(rows_with_outliers())
    after = dequantize_4bit(layer).float()
    assert before.shape == after.shape == (96, 128)
    torch.testing.assert_close(after, before, rtol=2**-7, atol=0)  # the scales are rounded to bf16 then
    identity = torch.eye(128, dtype=BF16)
    torch.testing.assert_close(layer(identity).T - layer.bias[:, None], after.to(BF16), rtol=0, atol=0.02)


def test_an_8bit_weight() -> None:
    layer = layer_of("int8")
    expected = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    torch.testing.assert_close(separated(layer).dequantized(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_quantized(wide_llama: Path, kind: str) -> None:
    loaded = load(wide_llama, kind)
    quantized = {n for n, m in loaded.hf.named_modules() if quantize.is_quantized(m)}
    assert quantized == {m.name for m in FusedDecoder(loaded.hf, 64).modules if m.linear}
    assert loaded.hf.lm_head.weight.dtype == loaded.hf.model.embed_tokens.weight.dtype == BF16


def test_one_base_whatever_its_bits(wide_llama: Path) -> None:
    assert len({load(wide_llama, kind).fingerprint for kind in ("none", *KINDS)}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_a_decoder(wide_llama: Path, kind: str) -> None:
    """About the original ones: within what so few bits can tell apart."""
    original = load(wide_llama, "none", "fp32").hf
    loaded = load(wide_llama, kind)
    for decoder in (FusedDecoder(loaded.hf, 64), GenericDecoder(loaded.hf)):
        for index, module in enumerate(decoder.modules):
            if not module.linear:
                continue
            wanted = original.get_submodule(module.name).weight
            found = decoder.weight(index).float()
            error = float((found - wanted).norm() / wanted.norm())
            assert found.shape == wanted.shape
            if not module.linear:  # norms are not quantized
                assert error < 0.01
                continue
            assert 0 < error < (0.12 if kind == "nf4" else 0.01), module.name


def test_a_width_that_does_not_fit_is_named_before_loading(tmp_path: Path, monkeypatch: Any) -> None:
    directory = tiny_model(tmp_path, "llama", intermediate_size=96)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # would fail otherwise
    with pytest.raises(ModelRefused, match=r"model.layers.0.mlp.down_proj \(96 to 64\).*--quantize int8"):
        load(directory, "nf4")


def test_outputs_have_to_fit_as_well_where_the_cpu_packs_them(tmp_path: Path, monkeypatch: Any) -> None:
    directory = tiny_model(tmp_path, "llama", intermediate_size=128, num_key_value_heads=1)  # k, v: 64 to 16
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: True)
    with pytest.raises(ModelRefused, match=r"outputs in multiples of 32.*k_proj \(64 to 16\)"):
        load(directory, "nf4")


def test_int8_takes_any_width(tmp_path: Path) -> None:
    loaded = load(tiny_model(tmp_path, "llama", intermediate_size=90, num_key_value_heads=1), "int8")
    assert isinstance(loaded.hf.model.layers[0].mlp.down_proj, Int8Linear)


@pytest.mark.parametrize("absent", ["bitsandbytes", "accelerate"])
def test_a_missing_library_names_the_extra(
    wide_llama: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(ConfigError, match=rf"needs {absent}: pip install 'manylora\[quantize\]'"):
        load(wide_llama, "nf4")


def test_a_checkpoint_that_is_quantized_already(wide_llama: Path, tmp_path: Path) -> None:
    settings = quantize.quantization_config("nf4")
    AutoModelForCausalLM.from_pretrained(wide_llama, quantization_config=settings).save_pretrained(tmp_path)
    with pytest.raises(ModelRefused, match="quantized already"):
        load(tmp_path, "none")


def test_native_kernels_say_why_they_do_not_run(wide_llama: Path) -> None:
    with pytest.raises(ConfigError, match="--kernels native: the base is quantized"):
        next(decoder_candidates(load(wide_llama, "nf4"), "native"))
    assert "the base is quantized" in next(decoder_candidates(load(wide_llama, "nf4"))).kernels_note


def test_gpt2_is_quantized_too(tmp_path: Path) -> None:
    """transformers turns its Conv1D layers into 4-bit ones; the generic decoder serves them."""
    loaded = load(tiny_model(tmp_path, "gpt2"), "nf4")
    decoder = next(decoder_candidates(loaded))
    assert isinstance(decoder, GenericDecoder)
    assert {m.name.rpartition(".")[2] for m in decoder.modules if m.linear} == {"c_attn", "c_proj", "c_fc"}
    assert decoder.weight(0).shape == (decoder.modules[0].out_features, decoder.modules[0].in_features)


def settings_for(model: Path, data_dir: Path, **options: Any) -> Settings:
    sizes: dict[str, Any] = {"kv_cache_memory": 1 << 20, "adapter_memory": 1 << 20}
    return Settings(model=str(model), data_dir=data_dir, device="cpu", **sizes, **options)


@pytest.mark.slow
def test_the_service_says_what_it_serves(wide_llama: Path, tmp_path: Path) -> None:
    taken: dict[str, Any] = {}
    for kind in ("none", *KINDS):
        settings = settings_for(wide_llama, tmp_path / kind, quantize=kind, dtype="bf16", kernels="pytorch")
        service = build_service(settings, wide_llama)
        assert (service.description["decoder"], service.description["kernels"]) == ("fused", "pytorch")
        assert service.description["quantization"] == kind
        taken[kind] = service.description["base_bytes"]
        service.store.close()
    outside = 2 * 2 * 288 * 64  # embeddings; the head is tied, but laid out anew
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)  # weights of both blocks
    norms = 4 * 64 * 2 * 2
    assert taken["none"] == outside + 2 * linear
    assert outside + linear <= taken["int8"] <= outside + 1.1 * linear + norms
    assert outside + linear / 2 <= taken["nf4"] <= outside + 0.55 * linear + norms


@pytest.mark.parametrize(("dtype", "kernels"), [("bf16", "auto"), ("bf16", "pytorch"), ("fp32", "pytorch")])
def test_a_base_is_in_memory_once(wide_llama: Path, dtype: str, kernels: str) -> None:
    """The fused decoder lets go of what it was made from, and still runs and knows its weights."""
    loaded = load(wide_llama, "none", dtype)
    original = {n: p.clone() for n, p in loaded.hf.named_parameters()}
    decoder = next(decoder_candidates(loaded, kernels))
    assert isinstance(decoder, FusedDecoder)
    pool = PagePool(decoder.modules, 1 << 20, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, 128)
    probe(loaded.hf, decoder, loaded.dtype)
    before = [decoder.weight(i) for i in range(len(decoder.modules))]
    decoder.take_over(loaded.hf)
    for index, module in enumerate(decoder.modules):
        assert loaded.hf.get_submodule(module.name).weight.is_meta == module.linear
        assert torch.equal(decoder.weight(index), original[f"{module.name}.weight"])
        assert torch.equal(before[index], original[f"{module.name}.weight"])
    linear = sum(original[f"{m.name}.weight"].nbytes for m in decoder.modules if m.linear)
    embedding = original["model.embed_tokens.weight"].nbytes
    assert linear + embedding <= decoder.weight_bytes <= linear + 2 * embedding + 2**16
