"""A stage: steps that are replayed, launched kernel by kernel, and run in PyTorch's layers, beside float32.

    python -m bench.gpu_check.agreement BASE SIZE DEVICE

The base has few layers, so that there is room for it in float32 beside the one that is checked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from bench.gpu_check.plan import SIZES, Size
from bench.gpu_check.results import Part, tell
from bench.steps import Shape, Workbench
from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, StepInputs, lora_inputs
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.weights import DecoderWeights
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.loader import load_model

_CHUNK = 1024  # tokens of a prompt that a step computes
# Times what 16 bits cost anyhow. Triton's interpreter cuts bits off where a GPU rounds.
_WORSE = 1.3 if torch.cuda.is_available() else 4.0
_OTHERS = (1.0, -0.7)  # weights of the members of a mix


@dataclass(frozen=True)
class Compared:
    """A step that was run in every way; errors are norms of differences from float32 over its norm."""

    rows: int
    context: int
    equal: bool  # replayed and launched, bit for bit
    error: float
    pytorch_error: float  # of PyTorch's layers in 16 bits
    same_token: float  # share of rows whose likeliest token is that of float32
    first_ms: float  # of the first replayed step, with its capture

    @property
    def right(self) -> bool:
        """Whether our kernels err no more than PyTorch's layers do, and replaying changes nothing."""
        return self.equal and self.error < _WORSE * self.pytorch_error


class Steps:
    """All steps on the weights of one base, each with a cache of its own that has the same prompt.

    All sequences share the blocks of that prompt but the last, which is each one's own.
    """

    def __init__(self, bench: Workbench, exact: DecoderWeights, size: Size) -> None:
        """``exact`` are the weights in float32."""
        assert isinstance(bench.decoder, FusedDecoder)
        self._bench = bench
        longest = max(size.contexts)
        self._shared = -(-longest // BLOCK_SIZE)
        blocks = 1 + self._shared + max(size.rows) + -(-_CHUNK // BLOCK_SIZE)
        weights, pool = bench.decoder.weights, bench.pool
        self.replayed = TritonStep(weights, pool, blocks)
        self.launched = TritonStep(weights, pool, blocks)
        for kind in (self.launched.decode_steps, self.launched.chunk_steps):
            if kind is not None:
                kind.graphs = None
        self.plain = ReferenceStep(weights, pool, blocks)
        self.exact = ReferenceStep(exact, pool.float(), blocks)
        rng = np.random.default_rng(1)
        self._tokens = rng.integers(0, weights.embedding.shape[0], longest + _CHUNK)
        for start in range(0, longest, _CHUNK):
            for step in (self.replayed, self.launched, self.plain, self.exact):
                step.step(self._prompt(start, min(start + _CHUNK, longest)))

    def _prompt(self, start: int, end: int) -> StepInputs:
        """A chunk of the prompt that all sequences share, computed by the base."""
        span = np.arange(start, end)
        return StepInputs(
            token_ids=self._tokens[start:end],
            positions=span,
            slots=span + BLOCK_SIZE,
            query_start=np.array([0, end - start], np.int32),
            context=np.array([end], np.int32),
            block_tables=(1 + np.arange(self._shared, dtype=np.int32))[None],
            logits_rows=np.array([end - start - 1]),
            lora=None,
        )

    def compare(self, rows: int, context: int) -> Compared:
        """One step of ``rows`` sequences of ``context`` tokens each, the mixes of which differ."""
        return self._compared(self._decode(rows, context), context)

    def _compared(self, inputs: StepInputs, context: int) -> Compared:
        began = perf_counter()
        first = self.replayed.step(inputs).clone()
        if first.device.type == "cuda":
            torch.cuda.synchronize()
        milliseconds = 1000 * (perf_counter() - began)
        again, launched = (step.step(inputs).clone() for step in (self.replayed, self.launched))
        plain, exact = self.plain.step(inputs), self.exact.step(inputs)
        return Compared(
            len(inputs.token_ids),
            context,
            equal=bool(torch.equal(first, again) and torch.equal(first, launched)),
            error=error_of(first, exact),
            pytorch_error=error_of(plain, exact),
            same_token=float((first.argmax(-1) == exact.argmax(-1)).float().mean()),
            first_ms=milliseconds,
        )

    def chunk(self, tokens: int) -> Compared:
        """Three decode rows beside a chunk of a prompt of ``tokens``, with adapters."""
        decoding = self._decode(3, self._shared * BLOCK_SIZE - 3)
        n = min(tokens, self._shared * BLOCK_SIZE // 2)
        own = 1 + self._shared + 3 + np.arange(-(-n // BLOCK_SIZE), dtype=np.int32)
        span = np.arange(n)
        tables = np.zeros((4, decoding.block_tables.shape[1]), np.int32)
        tables[:3], tables[3, : len(own)] = decoding.block_tables, own
        inputs = StepInputs(
            token_ids=np.concatenate([decoding.token_ids, self._tokens[:n]]),
            positions=np.concatenate([decoding.positions, span]),
            slots=np.concatenate([decoding.slots, own[span // BLOCK_SIZE] * BLOCK_SIZE + span % BLOCK_SIZE]),
            query_start=np.array([0, 1, 2, 3, 3 + n], np.int32),
            context=np.concatenate([decoding.context, [n]]).astype(np.int32),
            block_tables=tables,
            logits_rows=np.array([0, 1, 2, 2 + n]),
            lora=lora_inputs([*self._mixes(3), [(self._adapters()[0], 1.0)]]),
        )
        return self._compared(inputs, n)

    def _decode(self, rows: int, context: int) -> StepInputs:
        last = (context - 1) // BLOCK_SIZE
        tables = np.tile(1 + np.arange(last + 1, dtype=np.int32), (rows, 1))
        tables[:, last] = 1 + self._shared + np.arange(rows)
        return StepInputs(
            token_ids=np.resize(self._tokens[::-1], rows),
            positions=np.full(rows, context - 1),
            slots=(tables[:, last] * BLOCK_SIZE + (context - 1) % BLOCK_SIZE).astype(np.int64),
            query_start=np.arange(rows + 1, dtype=np.int32),
            context=np.full(rows, context, np.int32),
            block_tables=tables,
            logits_rows=np.arange(rows),
            lora=lora_inputs(self._mixes(rows)),
        )

    def _adapters(self) -> list[AdapterPages]:
        return max(self._bench.adapters.values(), key=len)

    def _mixes(self, rows: int) -> list[list[tuple[AdapterPages, float]]]:
        """The base for a third of the rows, side by side, then one adapter or two."""
        own, mixes = self._adapters(), []
        for row in range(rows):
            count = -(-3 * (row + 1) // rows) - 1 if rows > 2 else 1
            mixes.append([(own[(row + i) % len(own)], _OTHERS[i]) for i in range(count)])
        return mixes


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm())


def main(base: Path, size: str, device: str) -> None:
    """Run all parts."""
    plan = SIZES[size]
    count = max(plan.rows)
    bench = Workbench(base, [Shape(count, BLOCK_SIZE, plan.rank, count)], device=device, kernels="auto")
    loaded = load_model(base, dtype="fp32", device=device, max_model_len=None)
    exact = FusedDecoder(loaded.hf, loaded.max_model_len, "pytorch").weights
    with torch.inference_mode():
        steps = Steps(bench, exact, plan)
        found = [steps.compare(rows, context) for rows in plan.rows for context in plan.contexts]
        chunks = [steps.chunk(tokens) for tokens in plan.chunks]
    note = (
        "Decode steps with mixes of adapters: whether replaying and launching give equal bits; the errors of "
        "our kernels and of PyTorch's layers, both in bf16, against float32; ms of the first step, which "
        "captures."
    )
    tell(
        Part("agreement", "decode steps", all(one.right for one in found), note, [vars(one) for one in found])
    )
    note = "Three decode rows beside a chunk of a prompt, which is replayed or, if it is long, launched."
    tell(Part("agreement", "chunks", all(one.right for one in chunks), note, [vars(one) for one in chunks]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
