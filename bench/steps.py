"""Single steps of a decoder in process: batches of a given shape, timed, and what they must at least cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from transformers import PretrainedConfig

from manylora.adapters.format.base import TargetModule
from manylora.server.kernels.buffers import zeros
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, StepInputs, lora_inputs, page_length
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.loading.loader import decoder_candidates, load_model

_READ = 1 << 28  # bytes of each of two arrays that are read to measure bandwidth: no cache holds them
_SQUARE = 8192 if torch.cuda.is_available() else 2048  # side of the matrices multiplied to measure arithmetic


@dataclass(frozen=True)
class Shape:
    """One step: so many sequences, each of ``rows`` new tokens that end at ``context``."""

    batch: int
    context: int = 200
    rank: int = 16
    distinct: int = 0  # different adapters, dealt to the sequences in turn; 0: the base alone
    rows: int = 1  # 1 is a decode step


@dataclass(frozen=True)
class Machine:
    """What the hardware can do at most, as measured in the same run."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Work:
    """What a step must move and compute."""

    weight_bytes: float
    weight_flops: float
    kv_bytes: float
    adapter_bytes: float
    adapter_flops: float
    rows: int  # tokens that are computed
    sequences: int
    attention_flops: float = 0.0  # of prompts; those of single tokens take less than reading their keys

    def least_seconds(self, machine: Machine) -> float:
        """The roofline: the time of all bytes or of all arithmetic, whichever is longer."""
        moved = (self.weight_bytes + self.kv_bytes + self.adapter_bytes) / machine.bytes_per_second
        computed = self.weight_flops + self.adapter_flops + self.attention_flops
        return max(moved, computed / machine.flops_per_second)


def measure_machine(device: torch.device) -> Machine:
    """Bandwidth of reading memory, and the rate of bf16 matrix products; the best of a few tries.

    Of float32 ones on a CPU without bf16: that is what its kernels multiply.
    """
    x = torch.ones(_READ // 4, device=device)
    y = torch.ones(_READ // 4, device=device)
    a = torch.randn(_SQUARE, _SQUARE, device=device)
    if device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        a = a.bfloat16()
    read = min(_timed(lambda: torch.dot(x, y), device) for _ in range(7))
    product = min(_timed(lambda: a @ a, device) for _ in range(7))
    return Machine(2 * _READ / read, 2 * _SQUARE**3 / product)


class Workbench:
    """A decoder with room for the batches of all shapes, and random adapters of every rank they name."""

    def __init__(
        self,
        base: Path,
        shapes: Sequence[Shape],
        *,
        device: str,
        kernels: str,
        quantize: str = "none",
        coded_cache: bool = False,
        generic: bool = False,
    ) -> None:
        """``generic`` takes the decoder for models of any family, which knows none of ``kernels``."""
        loaded = load_model(base, dtype="bf16", device=device, max_model_len=None, quantize=quantize)
        self.device = loaded.device
        self.decoder: Decoder = (
            GenericDecoder(loaded.hf)
            if generic
            else next(iter(decoder_candidates(loaded, kernels, coded_cache=coded_cache)))
        )
        counts = {
            rank: max(s.distinct for s in shapes if s.rank == rank) for rank in {s.rank for s in shapes}
        }
        sizes = {rank: self._elements(rank) for rank in counts}
        elements = sum(sizes[rank] * count for rank, count in counts.items()) + _start(self.decoder)
        # As a server allocates it: on huge pages where there are any. On small ones adapters cost far more.
        self.pool = zeros((elements,), torch.bfloat16, self.device)
        self.pool.normal_(0, 0.003)
        self.pool[: _start(self.decoder)] = 0
        self.blocks = 1 + max(s.batch * -(-s.context // BLOCK_SIZE) for s in shapes)
        self.decoder.allocate(self.pool, self.blocks, max(s.batch * s.rows for s in shapes))
        self.adapters: dict[int, list[AdapterPages]] = {}
        at = _start(self.decoder)
        for rank, count in counts.items():
            self.adapters[rank] = [self._pages(rank, at + i * sizes[rank]) for i in range(count)]
            at += count * sizes[rank]
        self._kv_bytes = self.decoder.kv_bytes_per_block / BLOCK_SIZE
        config = loaded.hf.config
        self._layer_parameters = sum(m.in_features * m.out_features for m in self._linear)
        self._head_parameters = config.vocab_size * config.hidden_size
        self._vocabulary = config.vocab_size
        # Of a query and a key: their product, and that of its weight and a value.
        self._pair_flops = 4.0 * config.num_hidden_layers * self._attention_width(config)
        self.table_bytes = 2 * 2 * self._head_parameters  # of the embedding and the head, in bf16

    @staticmethod
    def _attention_width(config: PretrainedConfig) -> int:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(config.num_attention_heads * head_dim)

    def _elements(self, rank: int) -> int:
        return sum(rank * (page_length(m.in_features) + page_length(m.out_features)) for m in self._linear)

    @property
    def _linear(self) -> list[TargetModule]:
        return [module for module in self.decoder.modules if module.linear and not module.expert]

    def _pages(self, rank: int, start: int) -> AdapterPages:
        offsets, ranks, at = [], [], start
        for module in self.decoder.modules:
            own = rank if module.linear and not module.expert else 0
            offsets.append(at if own else 0)
            ranks.append(own)
            at += own * (page_length(module.in_features) + page_length(module.out_features))
        return AdapterPages(f"{rank}/{start}", np.array(offsets, np.int64), np.array(ranks, np.int32), start)

    def inputs(self, shape: Shape) -> StepInputs:
        """A step of that shape, its blocks scattered over the cache."""
        rng = np.random.default_rng(0)
        per_sequence = -(-shape.context // BLOCK_SIZE)
        tables = 1 + rng.permutation(self.blocks - 1)[: shape.batch * per_sequence]
        tables = tables.reshape(shape.batch, per_sequence)
        span = np.arange(shape.context - shape.rows, shape.context)
        slots = tables[:, span // BLOCK_SIZE] * BLOCK_SIZE + span % BLOCK_SIZE
        ends = np.arange(shape.batch + 1, dtype=np.int32) * shape.rows
        adapters = self.adapters[shape.rank]
        # Sequences of one mix are adjacent in a step.
        chosen = sorted(i % shape.distinct for i in range(shape.batch)) if shape.distinct else []
        mixes = [[(adapters[i], 1.0)] for i in chosen]
        return StepInputs(
            token_ids=rng.integers(0, self._vocabulary, shape.batch * shape.rows),
            positions=np.tile(span, shape.batch).astype(np.int64),
            slots=slots.reshape(-1),
            query_start=ends,
            context=np.full(shape.batch, shape.context, np.int32),
            block_tables=tables.astype(np.int32),
            logits_rows=(ends[1:] - 1).astype(np.int64),
            lora=lora_inputs(mixes) if mixes else None,
        )

    def seconds(self, inputs: Sequence[StepInputs], *, repeat: int) -> list[float]:
        """The median time of each step; they take turns, so that all meet the same machine."""
        for step in inputs:
            self.decoder.step(step)
        times = [[self.time(step) for step in inputs] for _ in range(repeat)]
        return [median(own) for own in zip(*times, strict=True)]

    def time(self, inputs: StepInputs) -> float:
        """The seconds of one step, and of whatever the device has to do before."""
        return _timed(lambda: self.decoder.step(inputs), self.device)

    def work(self, shape: Shape) -> Work:
        """What a step of that shape must move and compute; the head runs once a sequence."""
        rows = shape.batch * shape.rows
        adapter = sum(shape.rank * (m.in_features + m.out_features) for m in self._linear)
        distinct = min(shape.distinct, shape.batch)
        return Work(
            weight_bytes=2.0 * (self._layer_parameters + self._head_parameters),
            weight_flops=2.0 * (self._layer_parameters * rows + self._head_parameters * shape.batch),
            kv_bytes=self._kv_bytes * shape.context * shape.batch,
            adapter_bytes=2.0 * adapter * distinct,
            adapter_flops=2.0 * adapter * rows if distinct else 0.0,
            rows=rows,
            sequences=shape.batch,
            attention_flops=self._pair_flops * shape.batch * prompt_pairs(shape.rows, shape.context),
        )


def prompt_pairs(rows: int, context: int) -> float:
    """Queries and keys that meet in a piece of ``rows`` tokens of a prompt, which ends at ``context``."""
    return rows * (context - (rows - 1) / 2) if rows > 1 else 0.0


def _start(decoder: Decoder) -> int:
    """Where adapters begin: the pool's first page is zero."""
    return page_length(max(max(m.in_features, m.out_features) for m in decoder.modules))


def _timed(run: Callable[[], object], device: torch.device) -> float:
    begin = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begin
