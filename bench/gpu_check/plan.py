"""How large the check is: a base, and the steps that are tried and timed on it."""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu_check.base import LLAMA_8B, SMALL, TINY, BaseSize
from bench.steps import Shape


@dataclass(frozen=True)
class Size:
    """Everything that depends on the machine."""

    base: BaseSize
    rows: tuple[int, ...]  # of the decode steps that are compared
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]  # tokens of the prompts that are computed beside some
    batches: tuple[int, ...]  # of the decode steps that are timed
    adapters: tuple[int, ...]  # distinct ones in them; 0: the base
    context: int
    prompts: tuple[tuple[int, int], ...]  # sequences and tokens of each
    batch_tokens: int
    rank: int
    repeat: int
    adapter_files: int  # that the server gets
    loads: tuple[str, ...]  # of the server, as bench.run reads them
    output_tokens: int
    pause: float  # seconds in which streams are watched alone
    faulty: BaseSize  # of the servers that are made to fail

    def decode_shapes(self) -> list[Shape]:
        """The decode steps that are timed; more adapters than sequences are none."""
        return [
            Shape(batch, self.context, self.rank, distinct)
            for batch in self.batches
            for distinct in self.adapters
            if distinct <= batch
        ]

    def prompt_shapes(self) -> list[Shape]:
        """The steps of prompts that are timed."""
        return [
            Shape(batch, tokens, self.rank, distinct, rows=tokens)
            for batch, tokens in self.prompts
            for distinct in (0, batch)
        ]


SIZES = {
    "8b": Size(
        base=LLAMA_8B,
        rows=(1, 3, 5, 17, 100),
        contexts=(100, 600, 3000),
        chunks=(17, 128, 500, 1000),
        batches=(1, 8, 32, 128),
        adapters=(0, 1, 8, 32, 128),
        context=512,
        prompts=((1, 128), (1, 512), (1, 1024), (1, 4096), (8, 512)),
        batch_tokens=4096,
        rank=16,
        repeat=15,
        adapter_files=32,
        loads=("base@1", "base@32", "distinct:32@32", "base@128", "uniform:32@128"),
        output_tokens=128,
        pause=2.0,
        faulty=SMALL,
    ),
    "tiny": Size(
        base=TINY,
        rows=(1, 3),
        contexts=(20,),
        chunks=(9,),
        batches=(1, 2),
        adapters=(0, 1, 2),
        context=40,
        prompts=((1, 32),),
        batch_tokens=64,
        rank=4,
        repeat=1,
        adapter_files=2,
        loads=("base@1", "distinct:2@2"),
        output_tokens=4,
        pause=0.1,
        faulty=TINY,
    ),
}
