"""Broken data files: each fault is told with its file, its line and what to do, before any work is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.training.errors import DataError
from tests.support.training_data import chat, prepared, write

GOOD = chat("hi", "hello")
USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
PREFERENCE = {"prompt": "hi", "chosen": "hello", "rejected": "go away"}
CALL = {"function": {"name": "f", "arguments": "{}"}}


def messages(*items: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(items), **more}


def shared(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": name, "value": text} for name, text in turns]}


# name: (rows of the file, line of the fault, its message)
BROKEN: dict[str, tuple[list[Any], int, str]] = {
    "not JSON": ([GOOD, "{'messages': []}"], 2, "is not JSON at column 2"),
    "row over several lines": ([json.dumps(GOOD, indent=1)], 1, "a row must be on one line"),
    "trailing comma": ([GOOD, GOOD | {"id": 1}, json.dumps(GOOD) + ","], 3, "is not JSON"),
    "byte order mark": ([b"\xef\xbb\xbf" + json.dumps(GOOD).encode()], 1, "UTF-8 without BOM"),
    "UTF-16": ([json.dumps(GOOD).encode("utf-16")], 1, "save it as UTF-8"),
    "Latin-1": ([GOOD, '{"messages": "caf\xe9"}'.encode("latin-1")], 2, "is not UTF-8 at byte 18"),
    "one array": ([json.dumps([GOOD, GOOD])], 1, "write one JSON object a line"),
    "one array after blank lines": (["", "", json.dumps([GOOD])], 3, "JSON array"),
    "a list as a row": ([GOOD, ["hi", "hello"]], 2, "is an array, not an object"),
    "a string as a row": ([GOOD, '"hi"'], 2, "is a string, not an object"),
    "key twice": ([GOOD, '{"messages": [], "messages": []}'], 2, "'messages' is there twice"),
    "NaN": ([GOOD, '{"messages": [], "score": NaN}'], 2, "NaN is not a JSON number"),
    "empty file": ([""], 0, "is empty"),
    "compressed": ([b"\x1f\x8b\x08\x00"], 0, "is compressed"),
    "unknown format": ([{"q": "hi", "a": "hello"}], 1, "no known format has the fields a, q"),
    "another format in between": ([GOOD, {"instruction": "hi", "output": "o"}], 2, "looks like Alpaca"),
    "another task": ([PREFERENCE], 1, "--task dpo"),
    "messages no list": ([GOOD, {"messages": "hi"}], 2, "must be a list of messages"),
    "no messages": ([GOOD, messages()], 2, "and not empty"),
    "missing role": ([GOOD, messages({"content": "hi"}, BOT)], 2, "messages[0]: has no role"),
    "unknown role": ([GOOD, messages(USER, {"role": "bot", "content": "hi"})], 2, "messages[1].role: 'bot'"),
    "function role": ([messages(USER, {"role": "function", "content": "1"})], 1, "use 'tool'"),
    "no assistant turn": ([GOOD, GOOD | {"n": 1}, messages(USER)], 3, "no assistant turn"),
    "empty content": ([GOOD, messages(USER, BOT | {"content": " \n"})], 2, "messages[1].content: is empty"),
    "content missing": ([GOOD, messages({"role": "user"}, BOT)], 2, "must be text, not None"),
    "image": ([messages(USER | {"content": [{"type": "image_url"}]}, BOT)], 1, "only parts"),
    "half a weight": ([messages(USER, BOT | {"weight": 0.5})], 1, "must be 0 or 1, not 0.5"),
    "weight of a user": ([messages(USER | {"weight": 1}, BOT)], 1, "only assistant messages have a weight"),
    "all weights 0": ([GOOD, messages(USER, BOT | {"weight": 0})], 2, "every assistant turn has weight 0"),
    "misspelt field": ([messages(USER, BOT | {"contents": "x"})], 1, ".contents: is not a field"),
    "arguments not JSON": (
        [messages(USER, BOT | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]})],
        1,
        "messages[1].tool_calls[0].function.arguments: is not JSON",
    ),
    "tool call of a user": ([messages(USER | {"tool_calls": [CALL]}, BOT)], 1, "only assistant messages"),
    "tools no list": ([messages(USER, BOT, tools={"name": "f"})], 1, "tools: must be a list"),
    "ShareGPT role": ([shared(("human", "hi"), ("bard", "x"))], 1, "conversations[1].from: 'bard'"),
    "ShareGPT without answer": ([shared(("human", "hi"))], 1, "conversations: no assistant turn"),
    "Alpaca without output": ([{"instruction": "hi", "output": ""}], 1, "output: is empty"),
    "completion is a number": ([{"prompt": "hi", "completion": 4}], 1, "completion: must be text, not 4"),
    "longer than allowed": ([chat("x" * 600, "hello")], 0, "no row is left to learn from within max_length"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_fault_has_line_and_remedy(name: str, tmp_path: Path) -> None:
    rows, line, message = BROKEN[name]
    path = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepared(path)
    first = str(caught.value).splitlines()[0]
    where = f"{path}:{line}: " if line else f"{path}: "
    assert first.startswith(where)
    assert message in first


BROKEN_PREFERENCES: dict[str, tuple[Any, str]] = {
    "same answers": (PREFERENCE | {"rejected": "hello"}, "are the same"),
    "prompt ends with an answer": (PREFERENCE | {"prompt": [USER, BOT]}, "must not end with an assistant"),
    "two answers": (PREFERENCE | {"chosen": [BOT, BOT]}, "chosen: must be exactly one assistant message"),
    "answer by the user": (PREFERENCE | {"rejected": [USER]}, "rejected: must be exactly one"),
    "empty answer": (PREFERENCE | {"chosen": ""}, "chosen[0].content: is empty"),
    "no input": (
        {"input": "hi", "preferred_output": [BOT], "non_preferred_output": [BOT]},
        "input: must be an object with messages",
    ),
}


@pytest.mark.parametrize("name", BROKEN_PREFERENCES)
def test_broken_preferences(name: str, tmp_path: Path) -> None:
    row, message = BROKEN_PREFERENCES[name]
    with pytest.raises(DataError) as caught:
        prepared(write(tmp_path / "data.jsonl", ["", row]), task="dpo")
    assert str(caught.value).startswith(f"{tmp_path / 'data.jsonl'}:2: ")
    assert message in str(caught.value)


def test_broken_labels(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": None}, {"text": " ", "label": "x"}]
    with pytest.raises(DataError) as caught:
        prepared(write(tmp_path / "data.jsonl", rows), task="classification")
    said = str(caught.value)
    assert "data.jsonl:2: label: must be the name or number of a class" in said
    assert "data.jsonl:3: text: is empty" in said
    assert "every row has the label 'x'" in said


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: can't be read: no such file"):
        prepared(tmp_path / "none.jsonl")


def test_all_faults_of_both_files_at_once(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [GOOD, "{", messages(USER)])
    held_out = write(tmp_path / "eval.jsonl", [messages(USER, {"role": "bot", "content": "x"})])
    with pytest.raises(DataError) as caught:
        prepared(train, eval_path=held_out)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{held_out}:1",
        f"{train}:2",
        f"{train}:3",
    ]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(write(tmp_path / "data.jsonl", [GOOD, *(["{"] * 50)]))
    lines = str(caught.value).splitlines()
    assert lines[-1] == "and 20 more faults"
    assert len(lines) == 31


def test_train_and_eval_overlap(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [chat("a", "b"), GOOD])
    held_out = write(tmp_path / "eval.jsonl", [chat("c", "d"), GOOD | {"id": 7}])
    with pytest.raises(DataError) as caught:
        prepared(train, eval_path=held_out)
    assert str(caught.value).startswith(f"{held_out}:2: is also at {train}:2")


def test_what_the_template_would_drop(tmp_path: Path) -> None:
    """The model would never see it, so it is a fault of the data with this model."""
    plain = "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"  # noqa: E501
    tool = {"type": "function", "function": {"name": "f"}}
    for row, what in (
        (messages(USER, BOT, tools=[tool]), "tools"),
        (messages(USER | {"name": "ann"}, BOT), "names"),
        (messages(USER, BOT | {"tool_calls": [CALL]}), "tool calls"),
    ):
        path = write(tmp_path / "data.jsonl", [GOOD, row])
        assert prepared(path).warnings == ()  # RICH_TEMPLATE writes all three
        with pytest.raises(DataError, match=f"data.jsonl:2: {what}: this model's chat template has no place"):
            prepared(path, plain)


def test_a_template_that_refuses_a_row(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}x"
    path = write(tmp_path / "data.jsonl", [messages({"role": "system", "content": "s"}, USER, BOT)])
    with pytest.raises(DataError, match=r"data\.jsonl:1: the chat template rejects .* no system turns"):
        prepared(path, strict)
