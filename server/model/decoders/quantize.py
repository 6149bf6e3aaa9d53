"""A base in 4 or 8 bits through bitsandbytes: what is needed, which widths fit, how it is loaded."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.widths import unfit_for_nf4
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.codes import Codes, Kind
from manylora.server.kernels.reference.quantized import CodedLinear, dequantized
from manylora.server.model.decoders.coded_products import Products

NONE, NF4, INT8 = "none", "nf4", "int8"

STEP = 7.874015718698502e-3  # bitsandbytes' 1 / 127: 8-bit codes count such steps of the largest value
# Loggers that report an optional download which is not wanted, and at every step what is known.
_CHATTY = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")


def check_available(quantize: str) -> None:
    """Refuse early what needs a library that is not installed.

    Raises:
        ConfigError: naming the extra that has it.
    """
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--quantize {quantize} needs {' and '.join(missing)}: pip install 'manylora[quantize]'"
        )
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def quantization_config(quantize: str, dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """transformers' settings: NF4, quantized doubly, computing like a ``dtype`` of 16 bits; or LLM.int8()."""
    if quantize == INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16 if dtype == torch.float16 else torch.bfloat16,
    )


def check_widths(config: Any, quantize: str, device: torch.device) -> None:
    """Refuse a model with a layer that bitsandbytes can't compute in ``quantize`` on ``device``.

    Only the layers' sizes are looked at: no weights are read.

    Raises:
        ModelRefused: naming the layers.
    """
    fault = unfit_for_nf4(config, device) if quantize == NF4 else None
    if fault is not None:
        raise ModelRefused(f"--quantize nf4: {fault}: use --quantize int8, which takes any width")


def take_codes(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace bitsandbytes' layers of ``model`` by ones of ours, which multiply by the weights in ``dtype``.

    In its 8-bit layers rows of a batch affect each other, and on CPUs with AVX-512 BF16 its 4-bit ones round
    their scales at the first product. On a GPU whose kernels of ours don't run its 4-bit layers stay.
    """
    import bitsandbytes as bnb  # noqa: PLC0415  (slow to import, and an extra)

    tables: dict[str, torch.Tensor] = {}  # one for all layers
    products = Products()
    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear8bitLt):
            codes, bias = _codes_of_8bit(module), _bias_of(module)
            layer = CodedLinear(codes, bias, dtype, product=products.of(codes, bias, dtype))
        elif isinstance(module, bnb.nn.Linear4bit):
            codes, bias = _codes_of_4bit(module, tables), _bias_of(module)
            product = products.of(codes, bias, dtype)
            if product is None and module.weight.device.type != "cpu":
                continue
            layer = CodedLinear(codes, bias, dtype, _dequantize_4bit, product)
        else:
            continue
        model.set_submodule(name, layer)


def _bias_of(module: Any) -> torch.Tensor | None:
    return None if module.bias is None else module.bias.detach()


def _codes_of_8bit(module: Any) -> Codes:
    weight = module.weight
    scales = weight.SCB.float().view(-1, 1)  # the largest absolute value of each output
    return Codes(Kind.BYTES, weight.data, scales, weight.shape[1], factor=STEP)


def _codes_of_4bit(module: Any, tables: dict[str, torch.Tensor]) -> Codes:
    """Scales that are quantized once more are made float32: one for 64 weights, half a bit a weight."""
    from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

    state = module.weight.quant_state
    outputs, inputs = state.shape
    if inputs % state.blocksize:
        raise ModelRefused(f"4-bit blocks of {state.blocksize} weights go across rows of {inputs}")
    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    return Codes(
        Kind.NIBBLES,
        module.weight.data.view(torch.uint8).view(outputs, inputs // 2),
        scales.float().view(outputs, -1),
        state.blocksize,
        table=tables.setdefault(state.quant_type, state.code.float()),
    )


def _dequantize_4bit(codes: Codes, dtype: torch.dtype) -> torch.Tensor:
    """:meth:`Codes.weight` by bitsandbytes, which is many times faster and has the same bits."""
    assert codes.table is not None
    made: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
        codes.packed,
        codes.scales.reshape(-1),
        codes.group,
        "fp4" if codes.table[1] > 0 else NF4,
        codes.shape,
        dtype,
    )
    return made


def is_quantized(module: nn.Module) -> bool:
    """Whether a linear layer holds codes instead of its weight."""
    return isinstance(module, CodedLinear) or hasattr(getattr(module, "weight", None), "quant_state")


def weight_of(module: Any) -> torch.Tensor:
    """The weight [out, in] of a linear layer of any kind, dequantized if need be."""
    if is_quantized(module):
        return dequantized(module)
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight
