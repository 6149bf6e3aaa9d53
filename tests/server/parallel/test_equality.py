"""A model that is divided between processes says what it says in one, and what PEFT says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.support.adapter_set import Ask, prompt_of, recorded_logits, tiny_adapter_set
from tests.support.every_kind import EveryKind
from tests.support.pair_of_engines import Pair
from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]

# Between them: biases, windows, head norms, stacked projections, norms that add one, scores with caps.
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "mistral", "granite", "smollm3")


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
