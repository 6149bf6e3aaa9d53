"""A base in 4 or 8 bits: what is refused, what it computes beside PEFT, what it takes."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from manylora.server.assembly import build_service
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.cpu.huge_pages import Arena
from manylora.server.kernels.cpu.library import best_library
from manylora.server.kernels.cpu.packed_codes import coded_bytes, pack_codes
from manylora.server.kernels.reference.quantized import CodedLinear
from manylora.server.model.decoders import quantize
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from manylora.server.options.settings import Settings
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


def layer_of(kind: str, inputs: int = 128, outputs: int = 96, nested: bool = True) -> Any:
    """A layer as transformers makes it from a random weight; ``kind`` may be "fp4" as well."""
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, dtype=BF16) * 0.1
    bias = torch.randn(outputs, dtype=BF16)
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=6.0)
    else:
        layer = bnb.nn.Linear4bit(
            inputs, outputs, compute_dtype=BF16, compress_statistics=nested, quant_type=kind
        )
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.to(BF16).to("cpu").eval().requires_grad_(False)


def coded(layer: Any, dtype: torch.dtype = BF16) -> CodedLinear:
    holder = torch.nn.ModuleDict({"layer": layer})
    quantize.take_codes(holder, dtype)
    found = holder["layer"]
    assert isinstance(found, CodedLinear)
    return found


def theirs(layer: Any) -> torch.Tensor:
    """bitsandbytes' dequantized weight, in float32 where the kind has no dtype of its own."""
    if isinstance(layer, bnb.nn.Linear8bitLt):
        whole: torch.Tensor = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    else:
        whole = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return whole


def rows_with_outliers() -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(6, 128, dtype=BF16)
    x[1, 5], x[2, [5, 70]], x[4, 127] = 9.0, torch.tensor([-20.0, 7.0], dtype=BF16), 6.0
    x[5] = 0
    return x


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "fp4"])
def test_weights_have_the_bits_of_bitsandbytes(kind: str, nested: bool) -> None:
    """By its kernels, by the formula in PyTorch, and by the native kernels."""
    wanted = theirs(layer_of(kind, nested=nested)).to(BF16)
    layer = coded(layer_of(kind, nested=nested))
    codes = layer.codes
    assert codes is not None
    assert torch.equal(layer.weight_of_codes(), wanted)
    assert torch.equal(codes.weight(BF16), wanted)
    native = best_library().native
    packed = pack_codes(native, [codes], False, Arena(coded_bytes([codes])))
    found, plain = torch.empty(96 * 128, dtype=BF16), torch.empty(96 * 128, dtype=BF16)
    native.manylora_unpack(packed.struct, found.data_ptr(), 96, 128)
    native.manylora_pack(wanted.contiguous().data_ptr(), plain.data_ptr(), 96, 128)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_model_that_is_served_in_float32(kind: str) -> None:
    layer = coded(layer_of(kind), torch.float32)
    assert layer.codes is not None
    assert torch.equal(layer.weight_of_codes(), layer.codes.weight(torch.float32))
    assert not torch.equal(layer.weight_of_codes(), layer.weight_of_codes().to(BF16).float())


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_weights_is_rounded(kind: str) -> None:
    """Activations are not, whatever their size: a row is a plain product, and depends on no other row."""
    layer, x = coded(layer_of(kind)), rows_with_outliers()
    weight = theirs(layer_of(kind)).to(BF16)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight, layer.bias))
    wide = torch.nn.functional.linear(
        x.float(), weight.float(), None if layer.bias is None else layer.bias.float()
    )
    assert torch.equal(layer(x.float()), wide)
    torch.testing.assert_close(layer(x), wide.to(BF16), rtol=2**-7, atol=1e-2)


@torch.inference_mode()
def test_in_bitsandbytes_rows_affect_each_other() -> None:
    """Why 8-bit layers are replaced: when this fails, they need not be any more."""
    layer, x = layer_of("int8"), rows_with_outliers()
    assert not torch.equal(layer(x)[0], layer(x[:1])[0])


@torch.inference_mode()
def test_in_bitsandbytes_a_product_changes_the_scales() -> None:
    """Why 4-bit layers are replaced on a CPU with AVX-512 BF16: when this fails, they need not be."""
    layer = layer_of("nf4")
    codes = coded(layer_of("nf4")).codes
    assert codes is not None
    layer(rows_with_outliers())
    state = layer.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        pytest.skip("this CPU has no AVX-512 BF16")
    assert not torch.equal(state.absmax.T.float(), codes.scales)


def test_blocks_that_go_across_rows_are_refused_by_name() -> None:
    layer = layer_of("nf4", inputs=32, outputs=64)
    with pytest.raises(ModelRefused, match="blocks of 64 weights go across rows of 32"):
        coded(layer)


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
    assert isinstance(loaded.hf.model.layers[0].mlp.down_proj, CodedLinear)


@pytest.mark.parametrize("absent", ["bitsandbytes", "accelerate"])
def test_a_missing_library_names_the_extra(
    wide_llama: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(ConfigError, match=rf"needs {absent}: pip install 'manylora\[quantize\]'"):
        load(wide_llama, "nf4")


def stored_in_few_bits(model: Path, directory: Path, kind: str) -> Path:
    """The model as transformers saves it in few bits, with a tokenizer beside it."""
    settings = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")  # scales are not quantized
        if kind == "fp4"
        else quantize.quantization_config(kind)
    )
    AutoModelForCausalLM.from_pretrained(
        model, dtype=BF16, quantization_config=settings, device_map={"": "cpu"}
    ).save_pretrained(directory)
    for file in model.glob("*token*"):
        shutil.copy(file, directory)
    return directory


@pytest.mark.parametrize("kind", [*KINDS, "fp4"])
@torch.inference_mode()
def test_a_checkpoint_that_is_quantized_already(wide_llama: Path, tmp_path: Path, kind: str) -> None:
    """Its codes are kept: the weights have the bits of bitsandbytes' own."""
    directory = stored_in_few_bits(wide_llama, tmp_path / "stored", kind)
    loaded = load(directory, "none")
    assert loaded.quantize == kind
    original = AutoModelForCausalLM.from_pretrained(directory, device_map={"": "cpu"})
    for name, module in original.named_modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            assert torch.equal(quantize.weight_of(loaded.hf.get_submodule(name)), theirs(module).to(BF16))
    decoder = next(decoder_candidates(loaded, "native"))
    pool = PagePool(decoder.modules, 1 << 20, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
    probe(loaded.hf, decoder, loaded.dtype)
    with pytest.raises(ConfigError, match="quantized already"):
        load(directory, "nf4")


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("absmax", None, "absmax is missing"),
        ("absmax", lambda t: t[:-1], "absmax does not fit"),
        ("quant_map", lambda t: t[:8], "do not fit a weight"),
        ("nested_absmax", None, "not said how"),
        ("quant_state.bitsandbytes__nf4", lambda t: t[3:], "quant_state can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    wide_llama: Path, tmp_path: Path, part: str, change: Any, said: str
) -> None:
    directory = stored_in_few_bits(wide_llama, tmp_path / "stored", "nf4")
    tensors = load_file(directory / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.weight.{part}"
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=f"layers.1.mlp.up_proj: .*{said}"):
        load(directory, "none")


@pytest.mark.parametrize("kind", KINDS)
def test_native_kernels_run_it_and_keep_the_codes_once(wide_llama: Path, kind: str) -> None:
    loaded = load(wide_llama, kind)
    decoder = next(decoder_candidates(loaded, "native"))
    assert isinstance(decoder, FusedDecoder)
    pool = PagePool(decoder.modules, 1 << 20, loaded.dtype, loaded.device, decoder)
    decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
    probe(loaded.hf, decoder, loaded.dtype)
    probe_adapters(loaded.hf, decoder, pool, loaded.dtype)
    wanted = [quantize.weight_of(loaded.hf.get_submodule(m.name)) for m in decoder.modules]
    decoder.take_over(loaded.hf)
    assert all(torch.equal(decoder.weight(i), weight) for i, weight in enumerate(wanted))
    layers = [module for module in loaded.hf.modules() if isinstance(module, CodedLinear)]
    assert len(layers) == 14
    assert all(layer.codes is None for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_it_runs_in_pytorch(wide_llama: Path, kind: str) -> None:
    decoder = next(decoder_candidates(load(wide_llama, kind, "fp32")))
    assert (decoder.kernels, decoder.kernels_note) == (
        "pytorch", "the weights are float32, the kernels need bfloat16"
    )  # fmt: skip


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


@pytest.mark.sweep
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
    laid_out = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # the head anew: it is tied to the embeddings
    outside = 2 * (1 + laid_out) * 288 * 64
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)  # weights of both blocks
    norms = 4 * 64 * 2 * 2
    assert taken["none"] == outside + 2 * linear
    assert outside + linear <= taken["int8"] <= outside + 1.1 * linear + norms
    assert outside + linear / 2 <= taken["nf4"] <= outside + 0.57 * linear + norms


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
