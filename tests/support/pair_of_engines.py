"""One model in one process and divided between two, with the same adapters."""

from __future__ import annotations

from pathlib import Path

import torch

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix, Sequence
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.model.decoders.merging import merge
from tests.support.adapter_kinds import write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits, write_adapter_set
from tests.support.engine_harness import EngineHarness
from tests.support.tiny_models import tiny_model

LIMITS = Limits(max_rank=64, max_bytes=1 << 30)


def run(harness: EngineHarness, rows: list[Sequence]) -> tuple[list[list[int]], list[torch.Tensor]]:
    """The tokens of each row, and the logits that they were drawn from."""
    with recorded_logits() as logits:
        answers = harness.run(*rows)
    return [a.token_ids for a in answers], [torch.stack(logits[row.id]) for row in rows]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Sums in another order are all that may differ."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Pair:
    """One model on one process and on two, with the same adapters."""

    def __init__(
        self,
        root: Path,
        family: str = "llama-untied-bias",
        *,
        some: tuple[str, ...] = ("dora-bias", "ia3-inputs", "bias-targets", "saved-norms", "vera"),
        coded_cache: bool = False,
        **sizes: int,
    ) -> None:
        model = tiny_model(root / "model", family, vocab_size=289, **sizes)
        kinds = write_kinds(root / "kinds", model, family)
        self.paths = {n: kinds[n] for n in some} | write_adapter_set(root / "lora", model, family)
        self.sides = [
            EngineHarness(model, ranks=ranks, kernels="pytorch", max_batch_tokens=48, coded_cache=coded_cache)
            for ranks in (1, 2)
        ]
        self.pages: list[dict[str, AdapterPages]] = [
            {name: side.load(path) for name, path in self.paths.items()} for side in self.sides
        ]

    def compare(self, mixes: list[dict[str, float]]) -> None:
        """Run a row of each of ``mixes``, by adapter, on both sides."""
        found = []
        for side, pages in zip(self.sides, self.pages, strict=True):
            side.new_engine()
            rows = [
                side.sequence(prompt_of(4 + 9 * i, i), *((pages[n], w) for n, w in mix.items()), max_tokens=8)
                for i, mix in enumerate(mixes)
            ]
            found.append(run(side, rows))
        (tokens, logits), (others, their_logits) = found
        assert tokens == others
        assert_same(logits, their_logits)

    def compare_merged(self, mix: dict[str, float]) -> None:
        """Run a row on a merged copy, on both sides."""
        found, sizes = [], []
        for side in self.sides:
            members = [(read_artifact(self.paths[n], side.base, LIMITS).delta, w) for n, w in mix.items()]
            copy = side.decoder.merged()
            for _ in merge(side.decoder, members, copy):
                pass
            sizes.append(copy.nbytes)
            side.new_engine()
            row = side.sequence(prompt_of(30, 5), max_tokens=8)
            row.mix = ResolvedMix((), b"merged", "merged", copy)
            found.append(run(side, [row]))
        (tokens, logits), (others, their_logits) = found
        assert tokens == others
        assert_same(logits, their_logits)
        assert sizes[0] == sizes[1]
