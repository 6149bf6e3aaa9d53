"""The one interface behind which every base model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from manylora.adapters.format.base import CacheShape, TargetModule
from manylora.server.kernels.capturing import Capturing
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.weights import MergedWeights
from manylora.server.model.pages.tables import BaseTables


class Decoder(Protocol):
    """A causal language model over a paged KV cache, with adapters applied row by row."""

    @property
    def name(self) -> str:
        """Which decoder this is: "fused" or "generic"."""

    @property
    def kernels(self) -> str:
        """Which arithmetic runs: "pytorch", "cpu-avx512-bf16", ..."""

    @property
    def kernels_note(self) -> str:
        """Where native kernels came from, or why there are none, in one phrase."""

    @property
    def modules(self) -> Sequence[TargetModule]:
        """The adaptable linear layers, then norms; an adapter's page table is in this order."""

    @property
    def vocab_size(self) -> int:
        """Tokens the base's head has: the width of the logits of a step without larger vocabularies."""

    @property
    def tables(self) -> BaseTables:
        """The base's embeddings and head, as far as adapters are compared with them."""

    @property
    def cache_shape(self) -> CacheShape | None:
        """What of a position is in the KV cache; None where layers differ, or keys and values do."""

    @property
    def kv_bytes_per_block(self) -> int:
        """Bytes of K and V one block takes over all layers."""

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of ``modules[module]``, w [D] of a norm, in the dtype it has; not to be changed.

        A quantized base makes it anew at every call: take one module at a time.
        """

    def bias(self, module: int) -> torch.Tensor | None:
        """b [out] of ``modules[module]``, or None where it has none."""

    def allocate(self, pool: torch.Tensor, num_blocks: int, max_rows: int) -> None:
        """Allocate the KV cache and bind the flat page pool. Called once, before the first step.

        ``max_rows`` bounds the rows T of a step.
        """

    @property
    def merge_groups(self) -> Sequence[tuple[int, ...]]:
        """Numbers of the modules, in groups whose merged weights are given together."""

    def merged(self) -> MergedWeights:
        """Weights for :attr:`StepInputs.merged`; so far they are the base's. After :meth:`allocate`."""

    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step; the logits [R, W] of ``inputs.logits_rows``, valid until the next step.

        W is the largest vocabulary of the step's rows: :attr:`vocab_size`, or more where adapters add
        tokens. A row is minus infinity beyond its own.
        """

    @property
    def draw(self) -> Draw:
        """Draws tokens from logits that :meth:`step` returned. After :meth:`allocate`."""

    @property
    def capturing(self) -> Capturing | None:
        """What captures decode steps, where something does. After :meth:`allocate`."""

    def take_over(self, model: Any) -> None:
        """Free what ``model``, from which this decoder was made, holds a second time.

        Called once, after the last comparison with ``model``, which can't run any more afterwards.
        """

    @property
    def weight_bytes(self) -> int:
        """Bytes the base's weights take in memory, in the form they are run in."""
