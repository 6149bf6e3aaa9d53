"""Where a base runs and in which number format, from what the user said and what the machine has."""

from __future__ import annotations

import logging
import re

import torch

from manylora.server.errors import ConfigError

logger = logging.getLogger(__name__)

DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,2})?")
_BF16_SINCE = (8, 0)  # the compute capability of CUDA devices that multiply bf16 in hardware
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps".

    Auto is the first CUDA device (ROCm's count as such), else the CPU. A kind without a number is its first.

    Raises:
        ConfigError: there is no such device that torch can use.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cpu":
        return device
    count = device_count(device.type)
    if not count:
        raise ConfigError(
            f"--device {name}: this machine has no {device.type.upper()} device that torch can use"
        )
    if device.type == "mps":
        return device
    if (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: this machine has {count} of them, the first being {device.type}:0"
        )
    return torch.device(device.type, device.index or 0)


def device_count(kind: str) -> int:
    """How many devices of a kind torch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.cuda if kind == "cuda" else torch.xpu
    return module.device_count() if module.is_available() else 0


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype for "auto", "bf16", "fp16" or "fp32". Auto is what the hardware multiplies fast.

    Raises:
        ConfigError: fp16 on a CPU, which has nothing for it.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("--dtype fp16: for accelerators; on a CPU take bf16 or fp32")
    if name == "bf16" and device.type == "cuda" and not _multiplies_bf16(device):
        logger.warning("%s computes bf16 without its tensor cores; --dtype fp16 is faster there", device)
    return _DTYPES[name if name != "auto" else _best(device)]


def _best(device: torch.device) -> str:
    if device.type == "cpu":
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    if device.type == "cuda":
        return "bf16" if _multiplies_bf16(device) else "fp16"
    return "fp16" if device.type == "mps" else "bf16"


def _multiplies_bf16(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _BF16_SINCE


def use_device(device: torch.device) -> None:
    """Have the calling thread launch on ``device``: Triton asks the thread, not the tensors."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
