"""Formats, what is found in good files, holding out, and the summary."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manylora.adapters.training.data.rows import (
    ChatRow,
    LabelRow,
    PreferenceRow,
    Row,
    TextRow,
    content_digest,
)
from manylora.adapters.training.data.split import hold_out
from manylora.adapters.training.data.summary import bars, example, histogram, summarize, summary_table
from manylora.adapters.training.data.template import Encoded
from tests.support.training_data import chat, prepared, template, told, write

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
PREFERENCE = {"prompt": "hi", "chosen": "hello", "rejected": "go away"}


def only_row(tmp_path: Path, row: Any, **options: Any) -> Row:
    (result,) = prepared(write(tmp_path / "data.jsonl", [row]), **options).train.rows
    return result


SAME_CHAT: dict[str, Any] = {
    "OpenAI messages": {"messages": [USER, BOT]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    "Alpaca": {"instruction": "hi", "input": "", "output": "hello"},
    "prompt/completion": {"prompt": [USER], "completion": [BOT]},
}


@pytest.mark.parametrize("name", SAME_CHAT)
def test_formats_of_a_conversation(name: str, tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "data.jsonl", [SAME_CHAT[name]]))
    (row,) = data.train.rows
    assert isinstance(row, ChatRow)
    assert (row.messages, row.weights) == ((USER, BOT), (0, 1))
    assert data.files[0].format is not None
    assert data.files[0].format.name == name


def test_prompt_and_completion_as_text(tmp_path: Path) -> None:
    row = only_row(tmp_path, {"prompt": "hi", "completion": "hello"})
    assert isinstance(row, TextRow)
    assert (row.prompt, row.completion) == ("hi", "hello")


def test_alpaca_with_input_and_system(tmp_path: Path) -> None:
    row = only_row(tmp_path, {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "s"})
    assert isinstance(row, ChatRow)
    assert [m["content"] for m in row.messages] == ["s", "Add.\n\n1, 2", "3"]


OPENAI_PREFERENCE = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [BOT],
    "non_preferred_output": [{"role": "assistant", "content": "go away"}],
}


@pytest.mark.parametrize("value", [OPENAI_PREFERENCE, PREFERENCE, PREFERENCE | {"prompt": [USER]}])
def test_formats_of_a_preference(value: Any, tmp_path: Path) -> None:
    row = only_row(tmp_path, value, task="dpo")
    assert isinstance(row, PreferenceRow)
    assert (row.prompt, row.chosen, row.rejected["content"]) == ((USER,), BOT, "go away")


def test_labels_are_numbered_by_number_or_name(tmp_path: Path) -> None:
    for labels, expected in (([10, 9, 2], ("2", "9", "10")), (["no", "yes", "a"], ("a", "no", "yes"))):
        rows = [{"text": f"t{label}", "label": label} for label in labels]
        data = prepared(write(tmp_path / "data.jsonl", rows), task="classification")
        assert data.classes == expected
        assert isinstance(data.train.rows[0], LabelRow)
    path = write(tmp_path / "eval.jsonl", [{"text": "x", "label": "other"}])
    with pytest.raises(Exception, match=r"eval\.jsonl:1: label: 'other' does not occur"):
        prepared(tmp_path / "data.jsonl", task="classification", eval_path=path)


def test_fields_that_are_not_looked_at_are_told(tmp_path: Path) -> None:
    rows = [chat("a", "b") | {"id": 1, "source": "x"}, chat("c", "d") | {"id": 2}]
    warnings = prepared(write(tmp_path / "data.jsonl", rows)).warnings
    assert sorted(told(warnings)) == [
        (0, "id: not a field of this format, not looked at (2 rows)"),
        (0, "source: not a field of this format, not looked at (1 rows)"),
    ]


def test_duplicates_are_told_with_both_lines(tmp_path: Path) -> None:
    rows = [chat("a", "b"), chat("c", "d"), chat("a", "b")]
    warnings = prepared(write(tmp_path / "data.jsonl", rows)).warnings
    assert told(warnings) == [(3, "is the same row as line 1, so it counts twice")]
    many = prepared(write(tmp_path / "data.jsonl", [chat("a", "b")] * 30)).warnings
    assert len(many) == 11
    assert "29 rows repeat an earlier one" in many[-1].message


def test_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    line = json.dumps(chat("a", "b")).encode()
    path = write(
        tmp_path / "data.jsonl", [line + b"\r", b"", b"\r", json.dumps(chat("c", "d")).encode() + b"\r"]
    )
    assert [row.origin.line for row in prepared(path).train.rows] == [1, 4]


def test_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    rows = [chat(f"q{n % 20}", "a") for n in range(60)]  # every row three times
    data = prepared(write(tmp_path / "data.jsonl", rows), eval_split=0.1)
    assert data.eval is not None
    train = {content_digest(row) for row in data.train.rows}
    held_out = {content_digest(row) for row in data.eval.rows}
    assert not train & held_out
    assert (len(train), len(held_out), len(data.eval.rows)) == (18, 2, 6)
    again = prepared(tmp_path / "data.jsonl", eval_split=0.1)
    assert again.eval is not None
    assert again.eval.rows == data.eval.rows
    other = prepared(tmp_path / "data.jsonl", eval_split=0.1, seed=1)
    assert other.eval is not None
    assert other.eval.rows != data.eval.rows


def test_a_single_row_is_not_held_out(tmp_path: Path) -> None:
    rows = prepared(write(tmp_path / "data.jsonl", [chat("a", "b")] * 3)).train.rows
    assert hold_out(rows, 0.5, 0) == (rows, ())


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1], ((1, 1), (2, 0))),
        ([1, 2, 3, 4], ((2, 2), (4, 2))),
        ([5, 9, 10], ((5, 1), (10, 2))),
    ],
)
def test_histogram(lengths: list[int], expected: tuple[tuple[int, int], ...]) -> None:
    assert histogram(lengths, bins=2) == expected


def test_bars_keep_their_counts() -> None:
    assert [line.split()[-1] for line in bars([(10, 3), (20, 0), (30, 1200)]).splitlines()] == [
        "3",
        "0",
        "1,200",
    ]


def test_summary_counts(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "data.jsonl", [chat("hi", "hello"), chat("hi", "bye")]))
    summary = summarize(data.train)
    assert (summary.rows, summary.sequences) == (2, 2)
    assert summary.supervised == len("hello") + len("bye") + 2
    lengths = [len(s.input_ids) for s in data.train.sequences if isinstance(s, Encoded)]
    assert summary.tokens == sum(lengths)
    assert (summary.shortest, summary.longest) == (min(lengths), max(lengths))
    shown = StringIO()
    Console(file=shown, width=200).print(summary_table(data))
    assert "OpenAI messages" in shown.getvalue()
    assert "the assistant's turns of weight 1" in shown.getvalue()


def test_the_example_marks_what_is_learned(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "data.jsonl", [chat("hi", "hello")]))
    assert "assistant\n⟦hello<|im_end|>⟧" in example(data, template().hf).plain
    pairs = prepared(write(tmp_path / "data.jsonl", [PREFERENCE]), task="dpo")
    assert "⟦hello<|im_end|>⟧go away<|im_end|>" in example(pairs, template().hf).plain
    labels = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
    classes = prepared(write(tmp_path / "data.jsonl", labels), task="classification")
    assert example(classes, template().hf).plain.endswith("good\n→ yes")
