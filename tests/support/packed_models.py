"""What a model in few bits has to be: the one whose weights its codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from manylora.server.kernels.reference.quantized import CodedLinear
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """The weights by name, those of layers in codes dequantized."""
    found = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, CodedLinear):
            found[f"{name}.weight"] = module.weight_of_codes().float()
            if module.bias is not None:
                found[f"{name}.bias"] = module.bias
    return found


def assert_same(loaded: LoadedModel, directory: Path) -> None:
    """The loaded model has the weights, and computes the logits, of the one in ``directory``."""
    wanted = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found, expected = weights_of(loaded.hf), wanted.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    ids = (torch.arange(100) * 7 % 256)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.hf(ids).logits, wanted(ids).logits)


def assert_probed(loaded: LoadedModel, names: tuple[str, ...] = ("fused", "generic")) -> None:
    pool = torch.zeros(64, dtype=loaded.dtype)
    found = []
    for decoder in decoder_candidates(loaded):
        decoder.allocate(pool, PROBE_BLOCKS, PROBE_ROWS)
        probe(loaded.hf, decoder, loaded.dtype)
        found.append(decoder.name)
    assert tuple(found) == names
