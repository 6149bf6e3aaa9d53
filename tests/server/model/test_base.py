"""The base of a server: the dtype that it is loaded in, on a processor where PyTorch has no bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.kernels.cpu.library import best_library
from manylora.server.model.base import Base, load_base
from manylora.server.model.loading.wide_products import wide_products
from manylora.server.options.settings import Settings
from tests.support.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


def base_of(tmp_path: Path, family: str, shape: dict[str, Any], **settings: Any) -> Base:
    model = tiny_model(tmp_path / "model", family, **shape)
    settings |= {"kv_cache_memory": 1 << 24, "adapter_memory": 1 << 24}
    return load_base(Settings(model=str(model), data_dir=tmp_path, device="cpu", **settings), model)


@pytest.mark.skipif(not best_library().variant.cpu_flags, reason="for processors with AVX2")
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_where_the_native_kernels_run_bf16_is_taken(tmp_path: Path, quantize: str) -> None:
    base = base_of(tmp_path, "llama", {}, quantize=quantize)
    assert base.loaded.dtype == torch.bfloat16
    assert base.prepared.decoder.kernels.startswith("cpu-")


@pytest.mark.parametrize(
    ("family", "shape", "settings"),
    [
        ("gpt2", {}, {}),
        ("qwen3", {"head_dim": 24}, {}),  # no size for the native kernels
        ("llama", {}, {"kernels": "pytorch"}),
        ("llama", {}, {"dtype": "fp32"}),
    ],
)
def test_elsewhere_it_is_float32(
    tmp_path: Path, family: str, shape: dict[str, Any], settings: dict[str, Any]
) -> None:
    base = base_of(tmp_path, family, shape, **settings)
    assert base.loaded.dtype == torch.float32
    assert base.prepared.decoder.kernels == "pytorch"


def test_products_by_way_of_float32_are_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((5, 96), (7, 96), (7,)))
    with wide_products(torch.device("cpu")):
        found = torch.nn.functional.linear(x, w, b)
        batched = x[None] @ w.T[None]
        untouched = x.float() @ w.float().T
    assert found.dtype == batched.dtype == torch.bfloat16
    exact = x.double() @ w.double().T
    assert torch.equal(untouched.bfloat16(), batched[0])
    torch.testing.assert_close(batched[0].double(), exact, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(found.double(), exact + b.double(), rtol=2**-8, atol=1e-4)
