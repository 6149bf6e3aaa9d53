"""PEFT as the oracle: the logits that each request alone gets from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.server.model.decoders.quantize import quantization_config

LOGITS_TOLERANCE = 2e-4  # of the largest |logit|, in float32


class Peft:
    """The base model with adapters loaded by PEFT; runs one of them, or none, on one text at a time."""

    def __init__(
        self,
        directory: Path,
        adapters: Mapping[str, Path],
        dtype: torch.dtype = torch.float32,
        quantize: str = "none",
    ) -> None:
        few: dict[str, Any] = (
            {} if quantize == "none" else {"quantization_config": quantization_config(quantize)}
        )
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **few).eval()
        if few:
            dequantize(self.model, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D
            for name, path in adapters.items():
                if isinstance(self.model, PeftModel):
                    self.model.load_adapter(path, name, torch_device="cpu")
                else:
                    self.model = PeftModel.from_pretrained(self.model, path, name, torch_device="cpu")

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], adapter: str | None) -> torch.Tensor:
        """Logits [T, V] of a full forward over ``ids``."""
        with self.running(adapter) as model:
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def running(self, adapter: str | None) -> Any:
        """A context manager that gives the model with ``adapter`` switched on."""
        return _Running(self.model, adapter)


def dequantize(model: Any, dtype: torch.dtype) -> None:
    """Have plain layers with the weights of bitsandbytes' dequantization in place of its own."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            weight = bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
        else:
            continue
        plain = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        if module.bias is not None:
            plain.bias = torch.nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
        model.set_submodule(name, plain)
    model.is_quantized = False
    del model.config.quantization_config
    model.hf_quantizer = None


class _Running:
    def __init__(self, model: Any, adapter: str | None) -> None:
        self._model = model
        self._off = model.disable_adapter() if adapter is None and isinstance(model, PeftModel) else None
        if adapter is not None:
            model.set_adapter(adapter)

    def __enter__(self) -> Any:
        if self._off is not None:
            self._off.__enter__()
        return self._model

    def __exit__(self, *error: object) -> None:
        if self._off is not None:
            self._off.__exit__(*error)


def summed(directory: Path, base: BaseModel, members: Sequence[tuple[Path, float]]) -> Any:
    """The base model with ``Σ w·s·B·A`` added to its weights, computed in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for path, weight in members:
        _add(model, read(path, base), weight)
    return model


def read(path: Path, base: BaseModel) -> Artifact:
    """The validated adapter in ``path``, of whatever size tests need."""
    return read_artifact(path, base, Limits(max_rank=128, max_bytes=1 << 30))


@torch.no_grad()
def _add(model: Any, artifact: Artifact, weight: float) -> None:
    for name, lora in artifact.delta.items():
        parameter = model.get_submodule(name).weight
        delta = weight * lora.scaling * (lora.b.double() @ lora.a.double())
        if delta.shape != parameter.shape:  # Conv1D keeps its weight transposed
            delta = delta.T
        parameter.copy_((parameter.double() + delta).float())


def assert_logits_match(
    found: torch.Tensor, expected: torch.Tensor, tolerance: float = LOGITS_TOLERANCE, name: str = ""
) -> None:
    """Compare logits [n, V] relative to the largest of ``expected``."""
    assert found.shape == expected.shape
    difference = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    assert difference <= tolerance, f"logits differ by {difference:.2g} relative {name}"
