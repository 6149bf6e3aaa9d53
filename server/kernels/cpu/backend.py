"""The native step: what ``reference.ReferenceStep`` computes, in one call with the GIL released."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch

from manylora.server.kernels.cpu import abi
from manylora.server.kernels.cpu.build import KernelBuildError
from manylora.server.kernels.cpu.library import Library, best_library
from manylora.server.kernels.cpu.pack import MergedLayers, PackedWeights
from manylora.server.kernels.cpu.packed_codes import unfit
from manylora.server.kernels.cpu.sampling import NativeDraw
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import (
    BLOCK_SIZE,
    AdapterPages,
    CacheRun,
    LoraInputs,
    StepInputs,
    VectorPages,
)
from manylora.server.kernels.matrices import QuantizedMatrix
from manylora.server.kernels.reference.coded_cache import SCALE_BYTES
from manylora.server.kernels.weights import MATRICES, DecoderWeights, MergedWeights

_MAX_HEAD_DIM = 256


class NativeStep:
    """Runs steps on the CPU in bf16 with fp32 accumulation. Owns the KV cache.

    A row's logits have the same bits alone, in any batch and however its prompt was cut into chunks.
    Not for use by two threads at once.
    """

    name = "cpu-avx512-bf16"

    def __init__(
        self,
        weights: DecoderWeights,
        pool: torch.Tensor,  # flat bf16 rank pages
        num_blocks: int,
        max_rows: int,
        threads: int,
        *,
        coded_cache: bool = False,  # keys and values in 8 bits, as reference.coded_cache has them
        library: Library | None = None,
    ) -> None:
        assert pool.dtype == torch.bfloat16
        assert pool.is_contiguous()
        chosen = best_library() if library is None else library
        self.name = f"cpu-{chosen.variant.name}"
        self._native = chosen.native
        self._packed = PackedWeights(self._native, weights)
        self._pool = pool
        self._native.manylora_prefer_huge_pages(pool.data_ptr(), pool.numel() * pool.element_size())
        self._weights = weights.without_matrices()
        self._vocab = weights.lm_head.shape[0]
        self._logits = torch.empty(0, self._vocab + -self._vocab % 32)
        self._wanted = self._logits[:, : self._vocab]  # the rows of the last step, without padding
        self._prepared: _Prepared | None = None
        self._lora = _LoraTables(weights.expert_modules(0).start)
        decoder = self._packed.decoder
        decoder.pool, decoder.pool_elements = pool.data_ptr(), pool.numel()
        decoder.num_blocks, decoder.max_rows, decoder.threads = num_blocks, max_rows, threads
        decoder.kv_coded = coded_cache
        self._engine = self._native.manylora_open(decoder)
        if not self._engine:
            raise MemoryError(f"no room for a KV cache of {num_blocks} blocks")
        self._finalizer = weakref.finalize(self, self._native.manylora_close, self._engine)
        self.draw: Draw = NativeDraw(self._native, threads)

    @staticmethod
    def unsupported(weights: DecoderWeights) -> str | None:
        """Why these weights can't run here, in one phrase; None if they can. Builds the kernels."""
        if weights.ranks is not None:
            return (
                "native kernels run a step in one call; --tensor-parallel-size has sums in the middle of it"
            )
        if reason := _unsupported_weights(weights):
            return reason
        try:
            best_library()
        except KernelBuildError as error:
            return str(error)
        return None

    @staticmethod
    def origin() -> str:
        """Where the kernels come from, in one phrase."""
        return best_library().origin

    @staticmethod
    def kv_bytes_per_block(weights: DecoderWeights, *, coded_cache: bool = False) -> int:
        """Bytes of K and V that one block takes over all layers."""
        per_vector = weights.head_dim + SCALE_BYTES if coded_cache else 2 * weights.head_dim
        return BLOCK_SIZE * 2 * weights.n_kv_heads * per_vector * len(weights.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes the packed weights take."""
        return self._packed.nbytes

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, unpacked, or the weight [D] of a norm."""
        if (expert := self._weights.expert_place(module)) is not None:
            outputs, inputs = self._weights.weight(module).shape
            return self._packed.expert(expert, outputs, inputs)
        layer, name = self._weights.place(module)
        if name not in MATRICES:
            return self._weights.weight(module)
        outputs, inputs = getattr(self._weights.layers[layer], name).shape
        start, stop, _ = self._weights.rows(module).indices(outputs)
        return self._packed.rows(layer, name, range(start, stop), inputs)

    def merged(self) -> MergedWeights:
        """Weights to run with instead of the base's; so far they are the base's."""
        return MergedLayers(self._native, self._packed, self._weights)

    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step. Returns fp32 logits [R, V] of ``inputs.logits_rows``, valid until the next step.

        With ``inputs.raw_logits`` they are the head's product alone, as of the reference.
        Inputs that were run in the last step may be run again with other values in the same arrays.

        Raises:
            ValueError: an index of the inputs lies outside what this step owns; nothing was run.
        """
        for run in inputs.cached:
            self._fill_cache(run)
        prepared = self._prepared
        if prepared is None or prepared.inputs() is not inputs:
            self._prepared = prepared = _Prepared(weakref.ref(inputs), self._arguments(inputs))
        fault = self._native.manylora_step(self._engine, prepared.arguments)
        if fault != 0:
            raise ValueError(abi.FAULTS[fault])
        return self._wanted

    def _arguments(self, inputs: StepInputs) -> abi.Step:
        """The C struct of a step; sets up where its logits go."""
        count = len(inputs.logits_rows)
        if count > self._logits.shape[0]:
            self._logits = torch.empty(count, self._logits.shape[1])
        self._wanted = self._logits[:count, : self._vocab]
        merged = inputs.merged
        assert merged is None or isinstance(merged, MergedLayers)
        given = inputs.embedded
        return abi.Step(
            rows=len(inputs.token_ids),
            sequences=len(inputs.context),
            table_width=inputs.block_tables.shape[1],
            logits_count=count,
            token_ids=inputs.token_ids.ctypes.data,
            positions=inputs.positions.ctypes.data,
            slots=inputs.slots.ctypes.data,
            query_start=inputs.query_start.ctypes.data,
            context=inputs.context.ctypes.data,
            block_tables=inputs.block_tables.ctypes.data,
            logits_rows=inputs.logits_rows.ctypes.data,
            lora=None if inputs.lora is None else ctypes.pointer(self._lora.struct(inputs.lora)),
            logits=self._logits.data_ptr(),
            given_count=0 if given is None else len(given.rows),
            given_rows=None if given is None else given.rows.ctypes.data,
            given=None if given is None else given.values.data_ptr(),
            final_hidden=None if inputs.hidden is None else inputs.hidden.data_ptr(),
            layer=None if merged is None else ctypes.addressof(merged.layers),
            final_norm=None if merged is None else merged.final_norm,
            raw_logits=inputs.raw_logits,
        )

    def _fill_cache(self, run: CacheRun) -> None:
        slots = run.slots
        fault = self._native.manylora_fill_cache(self._engine, slots.ctypes.data, len(slots), run.start)
        if fault != 0:
            raise ValueError(abi.FAULTS[fault])


class _Prepared(NamedTuple):
    """The C struct of a step whose arrays may be changed and run again."""

    inputs: weakref.ref[StepInputs]  # that it was made of; what they hold must not outlive them here
    arguments: abi.Step


class _LoraTables:
    """Pointers to the page tables of a step's adapters; made anew only when the adapters change."""

    def __init__(self, first_expert: int) -> None:
        """``first_expert`` is the number of the first module of experts."""
        self._first_expert = first_expert
        self._adapters: tuple[AdapterPages, ...] = ()
        self._offset = np.empty(0, np.uintp)
        self._rank = np.empty(0, np.uintp)
        self._max_rank = np.empty(0, np.int32)
        self._max_expert_rank = np.empty(0, np.int32)
        self._vectors: dict[str, np.typing.NDArray[np.uintp]] = {}  # of each table of VectorPages

    def struct(self, inputs: LoraInputs) -> abi.Lora:
        if inputs.adapters != self._adapters:
            self._adapters = inputs.adapters
            self._offset = np.array([pages.offset.ctypes.data for pages in inputs.adapters], np.uintp)
            self._rank = np.array([pages.rank.ctypes.data for pages in inputs.adapters], np.uintp)
            self._max_rank = np.array([pages.rank.max() for pages in inputs.adapters], np.int32)
            own = [pages.rank[self._first_expert :] for pages in inputs.adapters]
            self._max_expert_rank = np.array([rank.max(initial=0) for rank in own], np.int32)
            self._vectors = {
                field.name: np.array([_table_of(pages, field.name) for pages in inputs.adapters], np.uintp)
                for field in fields(VectorPages)
            }
        return abi.Lora(
            adapters=len(inputs.adapters),
            offset=self._offset.ctypes.data,
            rank=self._rank.ctypes.data,
            max_rank=self._max_rank.ctypes.data,
            max_expert_rank=self._max_expert_rank.ctypes.data,
            start=inputs.start.ctypes.data,
            adapter=inputs.adapter.ctypes.data,
            weight=inputs.weight.ctypes.data,
            **{kind: table.ctypes.data for kind, table in self._vectors.items()},
        )


def _table_of(pages: AdapterPages, kind: str) -> int:
    """Address of one of the tables of :class:`VectorPages`; 0 if no module has anything there."""
    table = None if pages.vectors is None else getattr(pages.vectors, kind)
    return 0 if table is None or not table.any() else table.ctypes.data


def _unsupported_weights(weights: DecoderWeights) -> str | None:
    hidden = weights.embedding.shape[1]
    if weights.embedding.device.type != "cpu":
        return f"the weights are on {weights.embedding.device.type}"
    if weights.embedding.dtype != torch.bfloat16:
        dtype = str(weights.embedding.dtype).removeprefix("torch.")
        return f"the weights are {dtype}, the kernels need bfloat16"
    if weights.head_dim % 16 or weights.head_dim > _MAX_HEAD_DIM:
        return f"head size {weights.head_dim} is not a multiple of 16 up to {_MAX_HEAD_DIM}"
    inner = 32 if "gate_up" in weights.stacked else 16
    widths = hidden, weights.expert_intermediate, weights.intermediate
    if any(width % 16 for width in widths[:2]) or weights.intermediate % inner:
        named = ", ".join(str(width) for width in widths if width)
        return f"layer widths {named}: they are not multiples of 16, or those of an MLP of {inner}"
    if weights.n_heads % weights.n_kv_heads:
        return f"{weights.n_heads} heads do not divide into {weights.n_kv_heads} groups"
    return _unsupported_codes(weights)


def _unsupported_codes(weights: DecoderWeights) -> str | None:
    for layer in weights.layers:
        for name in MATRICES:
            matrix = getattr(layer, name)
            reason = (
                unfit([part.codes for part in matrix.parts], name == "gate_up")
                if isinstance(matrix, QuantizedMatrix)
                else None
            )
            if reason is not None:
                return f"the base is quantized in a way that has no kernel: {reason}"
    return None
