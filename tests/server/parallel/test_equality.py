"""A model that is divided between processes says what it says in one, and what PEFT says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix, Sequence
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.model.decoders.merging import merge
from tests.support.adapter_kinds import write_kinds
from tests.support.adapter_set import Ask, prompt_of, recorded_logits, tiny_adapter_set, write_adapter_set
from tests.support.engine_harness import EngineHarness
from tests.support.every_kind import EveryKind
from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]

# Between them: biases, windows, head norms, stacked projections, norms that add one, scores with caps.
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "mistral", "granite", "smollm3")
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


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_equals_peft(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path / "model", family)
    adapters = tiny_adapter_set(tmp_path / "adapters", model, family, ranks=2, max_batch_tokens=48)
    with closing(adapters.harness):
        asks = [Ask(name, prompt_of(5 + 7 * i, i), 8) for i, name in enumerate(adapters.names)]
        rows = [adapters.row(ask) for ask in asks]
        with recorded_logits() as logits:
            answers = adapters.harness.run(*rows)
        for ask, row, answer in zip(asks, rows, answers, strict=True):
            adapters.compare_with_peft(ask, answer, logits[row.id])


@pytest.mark.sweep
def test_more_ranks_than_heads_of_keys(tmp_path: Path) -> None:
    """Each of two heads of keys and values is on two of four ranks."""
    model = tiny_model(tmp_path / "model", "qwen2")
    adapters = tiny_adapter_set(tmp_path / "adapters", model, "qwen2", ranks=4)
    with closing(adapters.harness):
        asks = [Ask(name, prompt_of(5 + 7 * i, i), 8) for i, name in enumerate(adapters.names)]
        for ask, answer in zip(asks, adapters.harness.run(*map(adapters.row, asks)), strict=True):
            adapters.compare_with_peft(ask, answer)


@pytest.mark.sweep
def test_every_kind(tmp_path: Path) -> None:
    kinds = EveryKind(tmp_path, ranks=2)
    with closing(kinds.harness):
        first, _ = kinds.check()
        again, _ = kinds.check()  # from the prefix cache
        assert [answer.token_ids for answer in again] == [answer.token_ids for answer in first]
        for pages in kinds.pages.values():
            kinds.harness.pool.release(pages)
        kinds.pages = {n: kinds.harness.load(p) for n, p in reversed(kinds.paths.items())}
        kinds.harness.new_engine()
        kinds.check()  # in other places of the pool


class Pair:
    """One model on one process and on two, with the same adapters."""

    def __init__(self, root: Path, *, coded_cache: bool = False) -> None:
        family = "llama-untied-bias"
        model = tiny_model(root / "model", family, vocab_size=289)
        some = ("dora-bias", "ia3-inputs", "bias-targets", "saved-norms", "vera")
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    with closing(made.sides[1]):
        yield made
    started = made.sides[1].started
    assert started is not None
    assert started.leader.statuses == [0]  # the other rank has ended, and well


def test_mixes_of_kinds(pair: Pair) -> None:
    lone: list[dict[str, float]] = [{name: 1.0} for name in pair.paths]
    mixes = [{"dora-bias": 0.5, "all": -0.75, "ia3-inputs": 1.5}, {"bias-targets": 2.0, "saved-norms": 0.3}]
    pair.compare([{}, *lone, *mixes])


def test_merged_copies(pair: Pair) -> None:
    pair.compare_merged({"all": 0.5, "bias-targets": -1.0, "saved-norms": 0.7})
    pair.compare_merged({})
    pair.compare([{}, {"mlp": 1.0}])


def test_prompts_are_scored(pair: Pair) -> None:
    """By the logits of every row, each rank's of its part of a vocabulary that does not divide evenly."""
    scores = []
    for side, pages in zip(pair.sides, pair.pages, strict=True):
        side.new_engine()
        row = side.sequence(prompt_of(70), (pages["all"], 1.0), max_tokens=2, prompt_logprobs=3)
        side.run(row)
        scores.append([(s.token_id, s.logprob) for s in row.prompt_scores])
    assert [token for token, _ in scores[0]] == [token for token, _ in scores[1]]
    torch.testing.assert_close(*(torch.tensor([value for _, value in side]) for side in scores))


@pytest.mark.sweep
def test_a_cache_in_8_bits(tmp_path: Path) -> None:
    coded = Pair(tmp_path, coded_cache=True)
    with closing(coded.sides[1]):
        coded.compare([{}, {"all": 1.0}, {"dora-bias": 0.5, "mlp": 1.0}])
