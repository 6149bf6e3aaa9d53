"""A stage: --deterministic, whether rows keep their bits in any company, and what that costs.

python -m bench.gpu_check.deterministic BASE SIZE DEVICE
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from bench.gpu_check.plan import SIZES, Size
from bench.gpu_check.results import Part, Row, tell
from bench.steps import Shape, Workbench
from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.fixed.step import FixedStep
from manylora.server.kernels.cuda.splitting import part_of
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs, lora_inputs
from manylora.server.model.decoders.fused import FusedDecoder

STAGE = "deterministic"
_REPEATS = 5  # of what is timed, at most
_CONTEXT = 1024  # tokens: in longer ones a cache of rows that share nothing takes too much memory
_LONGEST = 200  # tokens of the prompt that is cut, all of whose logits are compared


class Check:
    """The steps that rows take with the option and without, on the weights of one base."""

    def __init__(self, base: Path, size: Size, device: torch.device) -> None:
        self.size = size
        self.shapes = [*size.decode_shapes(), *size.prompt_shapes()]
        self.contexts = [context for context in size.contexts if context <= _CONTEXT]
        rows = Shape(max(size.rows), max(self.contexts), size.rank, max(size.rows))
        self.bench = Workbench(base, [*self.shapes, rows], device=str(device), kernels="auto")
        assert isinstance(self.bench.decoder, FusedDecoder)
        weights, blocks = self.bench.decoder.weights, self.bench.blocks
        self.fixed = FixedStep(weights, self.bench.pool, blocks)
        self.usual = TritonStep(weights, self.bench.pool, blocks)
        for step in (self.fixed, self.usual):
            for kv in step.reference.cache:
                kv.keys.normal_()
                kv.values.normal_()

    def company(self) -> None:
        """Rows that decode, alone and in every batch they are a part of."""
        found: list[Row] = []
        for context in self.contexts:
            batch = self._decoding(context)
            together = self.fixed.step(batch).clone()
            launched = self.fixed.fused.step(batch)
            found.append(
                {"rows": len(together), "context": context, "equal": torch.equal(together, launched)}
            )
            for rows in self._some(len(together)):
                alone = self.fixed.step(part_of(batch, np.array(rows)).inputs)
                equal = torch.equal(alone, together[rows])
                found.append({"rows": len(rows), "context": context, "equal": equal})
        self._tell("rows in any company", "Replayed beside launched, and some of the rows beside all.", found)

    def _some(self, rows: int) -> Iterator[list[int]]:
        yield [rows - 1]
        for count in self.size.rows[:-1]:
            yield sorted({i * rows // count for i in range(count)})

    def cuts(self) -> None:
        """A prompt at once, cut into chunks, and token by token as an answer is decoded."""
        found: list[Row] = []
        n = min(_LONGEST, self.size.context // 4)
        whole = self._computed([n])
        for cuts in ([5, 1, n - 6], [n - 2, 1, 1]):
            found.append({"chunks": str(cuts), "equal": torch.equal(self._computed(cuts), whole)})
        self._tell("prompts in any pieces", f"All logits of {n} tokens, beside those of one chunk.", found)

    def draws(self) -> None:
        """Tokens that are drawn with one number, alone and beside others."""
        n, vocabulary = 64, self.fixed.reference.weights.vocab_size
        logits = 4 * torch.randn(n, vocabulary, device=self.bench.device)
        together = self.fixed.draw(_draws(logits, np.arange(n)))
        alone = [self.fixed.draw(_draws(logits[[row]], np.array([row])))[0] for row in range(n)]
        self._tell("draws in any company", f"{n} rows.", [{"equal": together == alone}])

    def times(self) -> None:
        """What steps take with the option and without."""
        shapes, repeat = self.shapes, min(self.size.repeat, _REPEATS)
        if self.bench.device.type != "cuda":
            shapes = shapes[:1]  # interpreted, nothing is learned from more
        else:
            for step in (self.fixed, self.usual):
                self._seconds(step, shapes, repeat=1)  # kernels are compiled, and steps captured
        usual, fixed = (self._seconds(step, shapes, repeat) for step in (self.usual, self.fixed))
        rows: list[Row] = [
            {
                "sequences": shape.batch,
                "tokens of each": shape.rows,
                "adapters": shape.distinct,
                "ms": 1000 * before,
                "ms, deterministic": 1000 * after,
                "tokens/s": shape.batch * shape.rows / before,
                "tokens/s, deterministic": shape.batch * shape.rows / after,
                "times": after / before,
            }
            for shape, before, after in zip(shapes, usual, fixed, strict=True)
        ]
        tell(Part(STAGE, "steps", None, f"Context {self.size.context}, rank {self.size.rank}.", rows))

    def _seconds(self, step: FixedStep | TritonStep, shapes: Sequence[Shape], repeat: int) -> list[float]:
        found = []
        for inputs in map(self.bench.inputs, shapes):
            times = []
            for _ in range(repeat):
                began = perf_counter()
                step.step(inputs)
                if self.bench.device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(perf_counter() - began)
            found.append(median(times))
        return found

    def _decoding(self, context: int) -> StepInputs:
        """A row each of as many sequences as are compared: the base, adapters, and mixes of two."""
        rows = max(self.size.rows)
        own = self.bench.adapters[self.size.rank]
        inputs = self.bench.inputs(Shape(rows, context, self.size.rank, 0))
        mixes = [
            [(own[(row + i) % len(own)], (1.0, -0.7)[i]) for i in range(3 * row // rows)]
            for row in range(rows)
        ]
        return replace(inputs, lora=lora_inputs(mixes))

    def _computed(self, cuts: Sequence[int]) -> torch.Tensor:
        """The logits of all tokens of a prompt with an adapter that is computed in such chunks."""
        tokens = np.random.default_rng(2).integers(0, len(self.fixed.reference.weights.embedding), sum(cuts))
        lora = lora_inputs([[(self.bench.adapters[self.size.rank][0], 1.0)]])
        found, start = [], 0
        for count in cuts:
            span, end = np.arange(start, start + count), start + count
            inputs = StepInputs(
                token_ids=tokens[span],
                positions=span,
                slots=span + BLOCK_SIZE,
                query_start=np.array([0, count], np.int32),
                context=np.array([end], np.int32),
                block_tables=(1 + np.arange(-(-end // BLOCK_SIZE), dtype=np.int32))[None],
                logits_rows=np.arange(count),
                lora=lora,
            )
            found.append(self.fixed.step(inputs).clone())
            start = end
        return torch.cat(found)

    @staticmethod
    def _tell(name: str, note: str, rows: list[Row]) -> None:
        tell(Part(STAGE, name, all(bool(row["equal"]) for row in rows), note, rows))


def _draws(logits: torch.Tensor, rows: np.ndarray) -> Draws:
    """Rows that are drawn from in four ways; what each gets hangs on its number among ``rows``."""
    kind = rows % 4
    return Draws(
        logits,
        temperature=np.where(kind == 0, 0.0, 0.8).astype(np.float32),
        top_k=np.where(kind == 1, 40, 0).astype(np.int64),
        top_p=np.where(kind == 2, 0.95, 1.0),
        min_p=np.zeros(len(rows), np.float32),
        uniform=(0.5 + rows) / 64,
    )


def main(base: Path, size: str, device: str) -> None:
    """Run all parts."""
    with torch.inference_mode():
        check = Check(base, SIZES[size], torch.device(device))
        check.company()
        check.cuts()
        check.draws()
        check.times()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
