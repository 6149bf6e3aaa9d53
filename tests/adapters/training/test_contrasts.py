"""Rows of texts that belong together, and the losses of their vectors beside their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.format.pooling import Pooling
from manylora.adapters.training.data.summary import example, summarize
from manylora.adapters.training.data.template import EncodedTexts
from manylora.adapters.training.errors import DataError, TrainingConfigError
from manylora.adapters.training.gate.retrieval import ranks
from manylora.adapters.training.model.base import find_base
from manylora.adapters.training.model.embedding import pooled
from manylora.adapters.training.session.prepare_data import prepare_data
from manylora.adapters.training.trainers.contrast import (
    cosine_loss,
    excluded_candidates,
    ranking_loss,
    ranking_scores,
)
from manylora.adapters.training.trainers.embed import PaddedContrasts
from tests.support.tiny_models import byte_tokenizer
from tests.support.training_data import prepared, write
from tests.support.training_runs import config


def texts(path: Path, *rows: Any, **changes: Any) -> list[tuple[list[str], float | None]]:
    """What is encoded of rows, decoded again."""
    data = prepared(write(path / "data.jsonl", rows), task="embedding", **changes)
    decode = byte_tokenizer().decode
    return [
        ([decode(ids) for ids in item.texts], item.score)
        for item in data.train.sequences
        if isinstance(item, EncodedTexts)
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    {
        "pair": ({"anchor": "a", "positive": "b"}, [["a", "b"]]),
        "query": ({"query": "a", "positive": "b", "negative": "c"}, [["a", "b", "c"]]),
        "answer": ({"question": "a", "answer": "b"}, [["a", "b"]]),
        "negatives": ({"anchor": "a", "positive": "b", "negatives": ["c", "d", "c"]}, [["a", "b", "c", "d"]]),
        "numbered": (
            {"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d"},
            [["a", "b", "c", "d"]],
        ),
        "lists": ({"query": "a", "pos": ["b", "c"], "neg": ["d"]}, [["a", "b", "d"], ["a", "c", "d"]]),
        "no negatives": ({"anchor": "a", "positive": "b", "negative": None}, [["a", "b"]]),
    }.values(),
)
def test_rows_of_pairs(row: dict[str, Any], expected: list[list[str]], tmp_path: Path) -> None:
    assert texts(tmp_path, row) == [(each, None) for each in expected]


@pytest.mark.parametrize("key", ["score", "similarity_score"])
def test_rows_with_a_score(key: str, tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", key: score} for score in (0.25, 1, -1)]
    assert texts(tmp_path, *rows) == [(["a", "b"], 0.25), (["a", "b"], 1.0), (["a", "b"], -1.0)]


PAIR = {"anchor": "a", "positive": "b"}
SCORED = {"sentence1": "a", "sentence2": "b", "score": 0.5}


@pytest.mark.parametrize(
    ("rows", "fault"),
    {
        "no text": ([PAIR | {"anchor": 1}], "1: anchor: must be text, not 1"),
        "empty": ([PAIR, PAIR | {"positive": " "}], "2: positive: must be a text that is not empty"),
        "no positive": ([PAIR | {"positive": []}], "1: positive: is empty"),
        "a positive too few": ([PAIR, {"anchor": "a"}], "2: has no positive, which the file's first row has"),
        "an odd negative": ([PAIR | {"negatives": ["c", 1]}], "1: negatives: must be a text"),
        "both": ([PAIR | {"negative": "b"}], "1: 'b' is a negative, and the positive"),
        "the anchor": ([PAIR | {"negative_1": "a"}], "1: 'a' is a negative, and the positive or the anchor"),
        "many": ([PAIR | {"negatives": [str(n) for n in range(65)]}], "has 65 texts; the limit is 64"),
        "a scale": ([SCORED | {"score": 4.2}], "1: score: must be the cosine to learn.*not 4.2: divide"),
        "no number": ([SCORED | {"score": True}], "1: score: must be a number, not True"),
        "answers": (
            [{"prompt": "a", "completion": "b"}],
            "--task sft trains on; this run's task is embedding",
        ),
    }.values(),
)
def test_faults(rows: list[Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault):
        texts(tmp_path, *rows)


def test_two_kinds_in_a_run(tmp_path: Path) -> None:
    other = write(tmp_path / "eval.jsonl", [SCORED])
    with pytest.raises(
        DataError, match=r"eval.jsonl:1: is a pair with a score, and the rows before are without"
    ):
        texts(tmp_path, PAIR, eval_path=other)


def test_pairs_are_not_for_other_tasks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="anchor/positive rows, which --task embedding trains on"):
        prepared(write(tmp_path / "data.jsonl", [PAIR]))


def test_texts_are_cut_each_and_counted(tmp_path: Path) -> None:
    rows = [{"anchor": "abc", "positive": "abcdef", "negative": "abcde"}]
    data = prepared(write(tmp_path / "data.jsonl", rows), task="embedding", max_length=4)
    (item,) = data.train.sequences
    assert isinstance(item, EncodedTexts)
    assert [len(ids) for ids in item.texts] == [3, 4, 4]
    counts = summarize(data.train)
    assert (counts.cut_sequences, counts.cut_tokens, counts.tokens) == (1, 3, 11)
    assert example(data, byte_tokenizer()).plain.endswith("abc\n→ abcd\n≠ abcd")


def test_a_row_alone_is_told_from_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    base = find_base(str(tiny_llama))
    rows = [PAIR, PAIR | {"anchor": "c"}]
    alone = config(tiny_llama, tmp_path, rows, task="embedding", batch_size=1, eval_split=0)
    with pytest.raises(TrainingConfigError, match="learns from the other rows of a batch"):
        prepare_data(alone, base)
    for some in ([PAIR | {"negative": "n"}], [SCORED]):
        prepare_data(config(tiny_llama, tmp_path, some, task="embedding", batch_size=1, eval_split=0), base)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_ranking_loss_is_its_definition(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, candidates = (torch.randn(n, 5, generator=generator) for n in (3, 7))
    excluded = torch.zeros(3, 7, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 0] = excluded[2, 5] = True

    def logit(row: int, column: int) -> float:
        a, c = anchors[row].double(), candidates[column].double()
        return float(a @ c / (a.norm() * c.norm())) / 0.1

    def loss(own: float, others: list[float]) -> float:
        return math.log(sum(map(math.exp, [own, *others]))) - own

    forth = [
        loss(logit(i, i), [logit(i, c) for c in range(7) if c != i and not excluded[i, c]]) for i in range(3)
    ]
    back = [
        loss(logit(i, i), [logit(j, i) for j in range(3) if j != i and not excluded[j, i]]) for i in range(3)
    ]
    expected = sum(forth) / 3 if not symmetric else (sum(forth) + sum(back)) / 6
    found = ranking_loss(ranking_scores(anchors, candidates, excluded), 0.1, symmetric=symmetric)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_cosine_loss_is_its_definition() -> None:
    first, second = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert float(cosine_loss(first, second, torch.tensor([0.5, 0.5]))) == pytest.approx(0.25)


def test_what_is_no_counterexample() -> None:
    """Equal questions, equal answers, and a question that is another's answer."""
    rows = [[[1], [10], [12]], [[1], [11]], [[2], [10], [11]], [[11], [13]]]
    candidates = [[10], [11], [10], [13], [12], [11]]  # four positives, then the negatives
    found = excluded_candidates(rows)
    assert found.shape == (4, 6)
    assert {(r, c) for r in range(4) for c in range(6) if found[r, c]} == {
        (0, 1), (0, 2), (0, 5), (1, 0), (1, 2), (1, 5), (2, 0), (3, 1), (3, 5),
    }  # fmt: skip
    for row, texts_ in enumerate(rows):
        assert not found[row, row]
        assert all(candidates[c] not in (texts_[0], texts_[1]) or c == row or found[row, c] for c in range(6))


def test_a_batch_is_padded_on_the_right() -> None:
    rows = [{"texts": [[1], [2, 3], [4]], "score": None}, {"texts": [[5, 6, 7], [8]], "score": None}]
    batch = PaddedContrasts(9)(rows)
    expected = [[1, 9, 9], [5, 6, 7], [2, 3, 9], [8, 9, 9], [4, 9, 9]]
    assert batch["input_ids"].tolist() == expected
    assert batch["attention_mask"].sum(1).tolist() == [1, 3, 2, 1, 1]
    assert batch["excluded"].shape == (2, 3)
    scored = PaddedContrasts(9)([{"texts": [[1], [2]], "score": 0.5}])
    assert scored["scores"].tolist() == [0.5]


def test_padding_has_no_part_in_a_vector() -> None:
    states = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.equal(pooled(states, mask, Pooling.LAST), torch.stack([states[0, 1], states[1, 3]]))
    assert torch.equal(
        pooled(states, mask, Pooling.MEAN), torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0, 1.0, 2.0], [2, 0, 1]), ([1.0, 1.0, 0.0, 1.0], [2, 2, 0, 2]), ([5.0, 5.0], [0.5, 0.5])],
)
def test_equal_values_share_a_rank(values: list[float], expected: list[float]) -> None:
    assert ranks(torch.tensor(values)).tolist() == expected
