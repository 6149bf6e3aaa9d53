"""Loading a base model: what is refused, what is derived, and the fallback between decoders."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from manylora.server.assembly import build_service
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.device import resolve_dtype
from manylora.server.model.loading.loader import (
    LoadedModel,
    context_length,
    decoder_candidates,
    describe_base,
    load_model,
)
from manylora.server.options.settings import Settings
from tests.support.tiny_models import FAMILIES, FUSED_FAMILIES, costly, tiny_model

CPU = torch.device("cpu")


def load(directory: Path, dtype: str = "fp32", max_model_len: int | None = None) -> LoadedModel:
    return load_model(directory, dtype=dtype, device="cpu", max_model_len=max_model_len)


@pytest.mark.parametrize(
    ("name", "device", "native", "expected"),
    [
        ("fp32", "cpu", True, torch.float32),
        ("fp32", "cuda", True, torch.float32),
        ("bf16", "cpu", False, torch.bfloat16),
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cpu", False, torch.float32),
    ],
)
def test_dtypes(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert resolve_dtype(name, torch.device(device)) == expected


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **settings}}


LONG_ROPE = {
    "original_max_position_embeddings": 128,
    **rope(
        rope_type="longrope",
        short_factor=[1.0] * 8,
        long_factor=[4.0] * 8,
        original_max_position_embeddings=128,
    ),
}


@pytest.mark.parametrize(
    ("family", "config", "wanted", "expected"),
    [
        ("llama", {}, None, 512),
        ("llama", {}, 512, 512),
        ("llama", {}, 100, 100),
        ("gpt2", {}, None, 512),
        ("llama", rope(rope_type="linear", factor=4.0), None, 512),
        ("llama", rope(rope_type="dynamic", factor=4.0), None, 512),
        ("llama", rope(rope_type="dynamic", factor=4.0, original_max_position_embeddings=128), None, 128),
        ("llama", rope(rope_type="dynamic", factor=4.0, original_max_position_embeddings=128), 64, 64),
        ("llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=128), None, 512),
        (
            "phi3",
            LONG_ROPE,
            None,
            128,
        ),
        ("phi3", LONG_ROPE, 300, 300),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {
                        "rope_type": "dynamic",
                        "rope_theta": 1e6,
                        "factor": 4.0,
                        "original_max_position_embeddings": 256,
                    },
                }
            },
            None,
            256,
        ),
    ],
)
def test_context_lengths(family: str, config: dict[str, Any], wanted: int | None, expected: int) -> None:
    assert context_length(config_of(family, config), wanted) == expected


@pytest.mark.parametrize(
    ("config", "wanted"),
    [({}, 513), (rope(rope_type="dynamic", factor=4.0, original_max_position_embeddings=128), 129)],
)
def test_a_context_beyond_the_models_is_refused(config: dict[str, Any], wanted: int) -> None:
    with pytest.raises(ConfigError, match=f"--max-model-len {wanted}"):
        context_length(config_of("llama", config), wanted)


def test_a_model_that_does_not_state_its_context() -> None:
    config = AutoConfig.for_model("bloom")
    assert context_length(config, 100) == 100
    with pytest.raises(ConfigError, match="--max-model-len"):
        context_length(config, None)


def config_of(family: str, overrides: dict[str, Any]) -> Any:
    settings = {"max_position_embeddings": 512, "hidden_size": 64, "num_attention_heads": 4}
    settings |= {"num_key_value_heads": 2, "num_hidden_layers": 2, **FAMILIES[family], **overrides}
    return AutoConfig.for_model(settings.pop("model_type", family), **settings)


def test_one_fingerprint_whatever_the_dtype(tiny_llama: Path) -> None:
    loaded = load(tiny_llama)
    assert loaded.fingerprint == load(tiny_llama, "bf16").fingerprint
    assert loaded.dtype == next(loaded.hf.parameters()).dtype == torch.float32


def test_other_weights_are_another_base(tiny_llama: Path, tmp_path: Path) -> None:
    found = {load(tiny_llama).fingerprint}
    found.add(load(tiny_model(tmp_path / "seed", "llama", seed=1)).fingerprint)
    found.add(load(tiny_model(tmp_path / "layers", "llama", num_hidden_layers=1)).fingerprint)
    found.add(load(tiny_model(tmp_path / "mistral", "mistral")).fingerprint)
    changed = shutil.copytree(tiny_llama, tmp_path / "changed")
    edit_weights(changed, lambda t: t["model.layers.1.mlp.down_proj.weight"].mul_(1.1))
    found.add(load(changed).fingerprint)
    assert len(found) == 5


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shrink(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:10].clone()


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "no config": lambda d: (d / "config.json").unlink(),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "truncated weights": lambda d: cut(d / "model.safetensors"),
    "a tensor is missing": lambda d: edit_weights(d, lambda t: t.pop("model.layers.0.mlp.up_proj.weight")),
    "a tensor of another shape": lambda d: edit_weights(d, shrink),
    "no tokenizer": lambda d: remove_all(d.glob("tokenizer*")),
    "a broken tokenizer": lambda d: (d / "tokenizer.json").write_text("{}"),
    "an unknown type": lambda d: edit_config(d, model_type="nonsense"),
    "no language model": lambda d: edit_config(d, model_type="vit"),
    "an impossible shape": lambda d: edit_config(d, num_attention_heads=5),
    "code of its own": lambda d: edit_config(d, model_type="x", auto_map={"AutoModelForCausalLM": "a.B"}),
}


def remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.slow
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_can_not_be_loaded_is_refused_with_a_reason(
    tiny_llama: Path, tmp_path: Path, breakage: str
) -> None:
    directory = shutil.copytree(tiny_llama, tmp_path / "model")
    BREAKAGES[breakage](directory)
    with pytest.raises(ModelRefused, match="model") as caught:
        load(directory)
    assert len(str(caught.value)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("family", costly(FAMILIES))
def test_the_decoder_that_fits(tmp_path: Path, family: str) -> None:
    loaded = load(tiny_model(tmp_path, family))
    kinds = [type(decoder) for decoder in decoder_candidates(loaded)]
    assert kinds == ([FusedDecoder, GenericDecoder] if family in FUSED_FAMILIES else [GenericDecoder])
    decoder = next(decoder_candidates(loaded))
    base = describe_base(loaded, decoder, "name")
    assert base.modules
    assert "lm_head" in base.others or "embed_out" in base.others
    assert base.others.isdisjoint(base.modules)
    for name, module in base.modules.items():
        weight = loaded.hf.get_submodule(name).weight
        assert sorted(weight.shape) == sorted((module.in_features, module.out_features))
        assert loaded.hf.get_submodule(name) is not loaded.hf.get_output_embeddings()


def test_both_decoders_name_the_same_modules(tiny_llama: Path) -> None:
    loaded = load(tiny_llama)
    assert list(FusedDecoder(loaded.hf, 512).modules) == list(GenericDecoder(loaded.hf).modules)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"model_type": "olmo"}])
def test_what_the_fused_decoder_does_not_do(
    tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(tiny_model(tmp_path, "llama", **change, head_dim=16))
    reason = FusedDecoder.unsupported(loaded.hf)
    assert reason
    (generic,) = decoder_candidates(loaded)
    assert isinstance(generic, GenericDecoder)
    assert generic.kernels_note == reason
    assert reason in caplog.text
    with pytest.raises(ConfigError, match="--kernels native"):
        next(decoder_candidates(loaded, "native"))


def settings_for(model: Path, data_dir: Path, **options: Any) -> Settings:
    return Settings(
        model=str(model),
        data_dir=data_dir,
        dtype="fp32",
        device="cpu",
        kv_cache_memory=1 << 20,
        adapter_memory=1 << 20,
        **options,
    )


@pytest.mark.slow
def test_a_fused_decoder_that_fails_the_probe_is_replaced(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if a new version of the family did something that the fused decoder does not know of."""
    original = FusedDecoder.__init__

    def skewed(self: FusedDecoder, model: Any, *args: Any, **options: Any) -> None:
        original(self, model, *args, **options)
        self.weights.cos.mul_(1.05)  # matrices are the original's own memory

    monkeypatch.setattr(FusedDecoder, "__init__", skewed)
    with caplog.at_level(logging.WARNING):
        service = build_service(settings_for(tiny_llama, tmp_path), tiny_llama)
    assert service.description["decoder"] == "generic"
    assert "disagrees" in caplog.text
    assert isinstance(service.description["probe_error"], float)
    service.store.close()


@pytest.mark.slow
def test_the_context_shrinks_to_the_kv_cache(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a single request could ask for more blocks than there are, and wait for ever."""
    options = {"kv_cache_memory": 20_000 * 4}
    settings = settings_for(tiny_llama, tmp_path).model_copy(update=options)
    service = build_service(settings, tiny_llama)
    blocks = service.core.blocks.num_blocks
    assert 0 < service.max_model_len == service.engine.max_model_len == blocks * 16 < 512
    assert "context limited" in caplog.text
    service.store.close()
