"""What the original model says of the probe's rows, and how far rounding alone may move a right decoder.

A decoder that serves in 16 bits is not equal to the original model: it rounds elsewhere. How much that does
to the logits differs by orders of magnitude from model to model and from row to row, so it is measured: the
original model computes the rows in float32; in the dtype it is served in; and in that with the inputs of
every module off by one rounding. As far as the last two are from the first, a right decoder may be, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from manylora.adapters.fidelity.precision import nudged, widened
from manylora.adapters.fidelity.probing import Hook, hooked
from manylora.server.model.decoders.quantize import is_quantized, weight_of
from manylora.server.model.loading.wide_products import wide_products

# Times the error that rounding was seen to make in a row that a decoder may make. Right ones were found to
# make up to five times of it in single rows of models whose attention a rounding turns, and wrong ones many
# times it; what most rows may be off is a fraction of this.
_FACTOR = 8.0
# Where rounding decides what a row attends to, it does much to some rows and little to others, at random. So
# a row counts as moved by this share of what the most moved row of its sequence is.
_SHARED = 0.3
# A model in which a rounding moves a row by this share of its spread is asked several times, with others.
_SENSITIVE = 0.05
_DRAWS = 4
# Share of a row's spread that may differ in any case: kernels in float32 may multiply in fewer bits.
_TOLERATED = {torch.float32: 1e-3}


@dataclass(frozen=True, eq=False)
class Reference:
    """Logits of the original model for some rows, and how far a right decoder's may be off."""

    logits: torch.Tensor  # [n, V] float32, computed in float32
    allowed: torch.Tensor  # [n] error, as of :meth:`errors`

    def errors(self, found: torch.Tensor) -> torch.Tensor:
        """How far the rows ``found`` [n, V] are off: the root mean square of the differences [n].

        What is added to all logits of a row changes no probability, and does not count.
        """
        return (found - self.logits).std(-1, correction=0)

    @property
    def spread(self) -> torch.Tensor:
        """The standard deviation of each row's logits [n]."""
        return self.logits.std(-1, correction=0)


def reference(
    model: Any,
    prompts: Sequence[torch.Tensor],
    rows: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    hooks: Mapping[str, Hook],
) -> Reference:
    """The logits of ``rows``, each a prompt and a position in it, with ``hooks`` on the model's modules.

    The prompts run as one batch, filled up at their ends: no position sees what comes after it.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.stack([nn.functional.pad(prompt, (0, width - len(prompt))) for prompt in prompts])
    eps = torch.finfo(dtype).eps
    with hooked(model, hooks):
        with widened(model, _unpacked_weight):
            exact = Reference(_logits(model, ids, rows), torch.zeros(len(rows)))
        noise = exact.errors(_logits(model, ids, rows))
        for seed in range(_DRAWS):
            with nudged(model, eps / 2, seed):
                noise = torch.maximum(noise, exact.errors(_logits(model, ids, rows)))
            if not (noise > _SENSITIVE * exact.spread).any():
                break
    sequences = torch.tensor([row for row, _ in rows])
    most = torch.zeros(len(prompts)).scatter_reduce(0, sequences, noise, "amax")
    size = exact.logits.pow(2).mean(-1).sqrt()  # logits are rounded as well
    moved = torch.maximum(noise, _SHARED * most[sequences])
    return Reference(exact.logits, _FACTOR * moved + eps * size + _TOLERATED.get(dtype, 0.0) * exact.spread)


def _unpacked_weight(module: nn.Module) -> torch.Tensor | None:
    return weight_of(module) if is_quantized(module) else None


@torch.inference_mode()
def _logits(model: Any, ids: torch.Tensor, rows: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Logits [n, V] of ``rows``, each a row of ``ids`` and a position in it: float32 on the CPU."""
    positions = sorted({position for _, position in rows})
    device = next(model.parameters()).device
    arguments: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = torch.tensor(positions, device=device)
        places = [positions.index(position) for _, position in rows]
    else:
        places = [position for _, position in rows]
    with wide_products(device):
        logits: torch.Tensor = model(**arguments).logits[[row for row, _ in rows], places]
    return logits.float().cpu()
