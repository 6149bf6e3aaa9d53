"""The norms of the rows of W + B A, which DoRA divides by: computed from the base when one is packed."""

from __future__ import annotations

import torch

from manylora.adapters.format.weights.delta import ModuleDelta

_CHUNK = 1 << 20  # elements of W that are widened to fp32 at a time


def row_norms(weight: torch.Tensor, delta: ModuleDelta) -> torch.Tensor:
    """‖W + B A‖ of each row [out] in fp32 on the CPU, for ``weight`` [out, in], a few rows at a time.

    As PEFT computes them (``tuners/lora/dora.py``): W in the dtype it is served in, widened.
    """
    a, b = delta.a.to(weight.device, torch.float32), delta.scaled_b().to(weight.device)
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [
        torch.addmm(weight[i : i + rows].float(), b[i : i + rows], a).norm(dim=1)
        for i in range(0, weight.shape[0], rows)
    ]
    return torch.cat(parts).cpu()
