"""Devices and number formats: what may be asked for, what auto takes, and what there is no room for."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from manylora.server.errors import ConfigError
from manylora.server.model.decoders.fused import native_backend
from manylora.server.model.loading import loader
from manylora.server.model.loading.device import DEVICE, resolve_device, resolve_dtype, use_device

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say which devices this machine has."""

    def have(*, cuda: int = 0, xpu: int = 0, mps: bool = False, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("name", "has", "expected"),
    [
        ("auto", {}, "cpu"),
        ("auto", {"cuda": 2}, "cuda:0"),
        ("auto", {"xpu": 1, "mps": True}, "cpu"),
        ("cpu", {"cuda": 1}, "cpu"),
        ("cuda", {"cuda": 1}, "cuda:0"),
        ("cuda:1", {"cuda": 2}, "cuda:1"),
        ("xpu", {"xpu": 1}, "xpu:0"),
        ("xpu:3", {"xpu": 4}, "xpu:3"),
        ("mps", {"mps": True}, "mps"),
    ],
)
def test_devices(machine: Any, name: str, has: dict[str, Any], expected: str) -> None:
    machine(**has)
    assert DEVICE.fullmatch(name)
    assert str(resolve_device(name)) == expected


@pytest.mark.parametrize(
    ("name", "has", "message"),
    [
        ("cuda", {}, "--device cuda: this machine has no CUDA device"),
        ("cuda:1", {"cuda": 1}, "--device cuda:1: this machine has 1 of them"),
        ("xpu", {"cuda": 1}, "no XPU device"),
        ("mps", {}, "no MPS device"),
    ],
)
def test_devices_that_are_not_there(machine: Any, name: str, has: dict[str, Any], message: str) -> None:
    machine(**has)
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


@pytest.mark.parametrize(
    "name", ["cuda:-1", "cuda:", "cuda:1000", "gpu", "cpu:0", "CUDA", "cuda:1 ", "mps:0", ""]
)
def test_what_is_no_device(name: str) -> None:
    assert DEVICE.fullmatch(name) is None


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("auto", "cuda", (7, 5), torch.float16),
        ("auto", "cuda", (7, 0), torch.float16),
        ("auto", "cuda", (8, 0), torch.bfloat16),
        ("auto", "cuda", (8, 6), torch.bfloat16),
        ("auto", "cuda", (9, 0), torch.bfloat16),
        ("auto", "xpu", (0, 0), torch.bfloat16),
        ("auto", "mps", (0, 0), torch.float16),
        ("fp16", "cuda", (9, 0), torch.float16),
        ("bf16", "cuda", (7, 5), torch.bfloat16),
        ("fp32", "cuda", (7, 5), torch.float32),
    ],
)
def test_number_formats(
    machine: Any, name: str, device: str, capability: tuple[int, int], expected: torch.dtype
) -> None:
    machine(cuda=1, capability=capability)
    assert resolve_dtype(name, torch.device(device)) == expected


def test_a_slow_format_is_taken_with_a_warning(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(cuda=1, capability=(7, 5))
    with caplog.at_level(logging.WARNING):
        resolve_dtype("bf16", torch.device("cuda", 0))
    assert "--dtype fp16 is faster" in caplog.text


def test_fp16_is_not_for_cpus() -> None:
    with pytest.raises(ConfigError, match="--dtype fp16: for accelerators"):
        resolve_dtype("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "hip", "name"), [("xpu", None, "XPU"), ("mps", None, "MPS"), ("cuda", "6.4", "ROCm")]
)
def test_other_accelerators_run_plain_pytorch_and_say_so(
    monkeypatch: pytest.MonkeyPatch, device: str, hip: str | None, name: str
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    assert native_backend(torch.device(device)) == (
        f"there are kernels of our own for NVIDIA GPUs and CPUs, not for {name}"
    )


def test_weights_that_do_not_fit_are_refused_before_they_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1000, 1000)
    monkeypatch.setattr(loader, "available_bytes", lambda _: 4_000_000)
    with pytest.raises(ConfigError, match=r"--device cuda:0: the model's weights take .* GiB.*--quantize"):
        loader.check_room(model, torch.device("cuda", 0))
    monkeypatch.setattr(loader, "available_bytes", lambda _: 5_000_000)
    loader.check_room(model, torch.device("cuda", 0))
    monkeypatch.setattr(loader, "available_bytes", lambda _: 0)
    loader.check_room(model, torch.device("cpu"))


def test_threads_launch_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    use_device(torch.device("cuda", 1))
    use_device(torch.device("cpu"))
    assert chosen == [torch.device("cuda", 1)]
