"""What a turn says about being learned, spellings of roles, and what is dropped or kept with a count."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.training.data.rows import ChatRow, PlainRow
from manylora.adapters.training.data.template import IGNORED, Encoded
from manylora.adapters.training.errors import DataError
from tests.support.training_data import prepared, template, write

SHAPES = {
    "messages": ("role", "content"),
    "conversations": ("from", "value"),
    "conversation": ("role", "content"),
}


def row(field: str, *turns: tuple[str, Any], keys: dict[int, dict[str, Any]] | None = None) -> dict[str, Any]:
    """A conversation of (role, text), some turns with keys of their own."""
    role, content = SHAPES[field]
    made = [{role: who, content: text, **(keys or {}).get(i, {})} for i, (who, text) in enumerate(turns)]
    return {field: made}


def only(tmp_path: Path, value: Any, **options: Any) -> ChatRow:
    (result,) = prepared(write(tmp_path / "d.jsonl", [value]), **options).train.rows
    assert isinstance(result, ChatRow)
    return result


TURNS = [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]


@pytest.mark.parametrize("field", SHAPES)
@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("no", [False, 0, 0.0])
def test_a_turn_that_is_not_to_be_learned_is_not(field: str, key: str, no: Any, tmp_path: Path) -> None:
    value = row(field, *TURNS, keys={1: {key: no}, 3: {key: True}, 0: {key: no}})
    assert only(tmp_path, value).weights == (0, 0, 0, 1)
    (sequence,) = prepared(tmp_path / "d.jsonl").train.sequences
    assert isinstance(sequence, Encoded)
    learned = [
        token for token, label in zip(sequence.input_ids, sequence.labels, strict=True) if label != IGNORED
    ]
    assert template().hf.decode(learned) == "two<|im_end|>"


REFUSED = {
    "weight": 0.5, "train": "maybe", "loss": 2, "loss_scale": 0.3, "train_detail": [{"begin_offset": 0}],
    "images": ["a.png"], "reasoning_content": "hm", "vlaue": "x", "wieght": 0, "contents": "x",
}  # fmt: skip


@pytest.mark.parametrize("field", SHAPES)
@pytest.mark.parametrize("key", REFUSED)
def test_keys_that_ask_for_something_else_are_faults(field: str, key: str, tmp_path: Path) -> None:
    value = row(field, *TURNS, keys={3: {key: REFUSED[key]}})
    with pytest.raises(DataError, match=rf"d\.jsonl:1: {field}\[3\]\.{key}: "):
        prepared(write(tmp_path / "d.jsonl", [value]))


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_only_the_assistant_is_learned(key: str, tmp_path: Path) -> None:
    value = row("conversations", *TURNS, keys={0: {key: 1}})
    with pytest.raises(DataError, match=rf"conversations\[0\]\.{key}: only assistant messages"):
        prepared(write(tmp_path / "d.jsonl", [value]))
    both = row("conversations", *TURNS, keys={1: {"weight": 1, "train": False}})
    with pytest.raises(DataError, match="say both that the turn is learned and that it is not"):
        prepared(write(tmp_path / "d.jsonl", [both]))


def test_other_keys_of_turns_are_counted(tmp_path: Path) -> None:
    value = row("conversations", *TURNS, keys={1: {"markdown": "m", "id": 3}, 3: {"id": 4, "note": None}})
    warnings = prepared(write(tmp_path / "d.jsonl", [value])).warnings
    assert sorted(w.message for w in warnings) == [
        "conversations[].id: not a field of a turn, not looked at (2 times, first on line 1)",
        "conversations[].markdown: not a field of a turn, not looked at (1 times, first on line 1)",
    ]


USERS, BOTS = ("user", "human", "Human", "prompter"), ("assistant", "gpt", "GPT", "chatgpt", "model", "ai")


@pytest.mark.parametrize("field", SHAPES)
def test_spellings_of_roles(field: str, tmp_path: Path) -> None:
    for user, bot in itertools.product(USERS, BOTS):
        messages = only(tmp_path, row(field, (user, "a"), (bot, "b"))).messages
        assert [m["role"] for m in messages] == ["user", "assistant"]
    for tool in ("tool", "observation", "tool_response", "function_response", "ipython"):
        call = '{"name": "f", "arguments": {"x": 1}}'
        value = row(field, ("user", "a"), ("function_call", call), (tool, ""), ("assistant", "b"))
        made = only(tmp_path, value)
        assert [m["role"] for m in made.messages] == ["user", "assistant", "tool", "assistant"]
        assert made.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
        assert made.weights == (0, 1, 0, 1)


@pytest.mark.parametrize("field", SHAPES)
@pytest.mark.parametrize("empty", ["", " \n", None])
def test_empty_system_turns_are_dropped_with_a_count(field: str, empty: Any, tmp_path: Path) -> None:
    rows = [row(field, ("system", empty), *TURNS[:2]), row(field, ("system", "s"), *TURNS[2:])]
    data = prepared(write(tmp_path / "d.jsonl", rows * 3))
    assert [len(r.messages) for r in data.train.rows if isinstance(r, ChatRow)] == [2, 3] * 3
    assert "empty system turns dropped (3 times, first on line 1)" in [w.message for w in data.warnings]


STRICT = (
    "{% for m in messages %}{% if loop.first and m['role'] == 'assistant' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("field", SHAPES)
def test_a_first_turn_of_the_assistant_is_seen_and_not_learned(field: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [row(field, ("assistant", "welcome"), *TURNS)] * 2)
    data = prepared(path)
    (sequence, _) = data.train.sequences
    assert isinstance(sequence, Encoded)
    whole = template().hf.decode(sequence.input_ids)
    assert "welcome" in whole
    learned = [
        token for token, label in zip(sequence.input_ids, sequence.labels, strict=True) if label != IGNORED
    ]
    assert template().hf.decode(learned) == "one<|im_end|>two<|im_end|>"
    note = "conversations begin with a turn of the assistant: it is seen, and not learned"
    assert f"{note} (2 times, first on line 1)" in [w.message for w in data.warnings]
    refused = prepared(path, STRICT)
    assert "first turns of the assistant dropped, which the template refuses (2 rows)" in [
        w.message for w in refused.warnings
    ]
    (sequence, _) = refused.train.sequences
    assert isinstance(sequence, Encoded)
    assert "welcome" not in template().hf.decode(sequence.input_ids)


def test_an_answer_to_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [row("messages", ("assistant", "welcome"))])
    with pytest.raises(DataError, match="the only answer comes before any question"):
        prepared(path)


def test_the_system_field_and_a_system_turn(tmp_path: Path) -> None:
    value = row("conversations", *TURNS)
    assert only(tmp_path, value | {"system": "s"}).messages[0] == {"role": "system", "content": "s"}
    both = row("conversations", ("system", "own"), *TURNS) | {"system": "s"}
    assert [m["content"] for m in only(tmp_path, both).messages][:2] == ["own", "a"]


def test_plain_text_is_learned_whole_and_in_pieces(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "d.jsonl", [{"text": "x" * 100}]), max_length=40)
    assert isinstance(data.train.rows[0], PlainRow)
    pieces = [item for item in data.train.sequences if isinstance(item, Encoded)]
    assert all(piece.input_ids == piece.labels and len(piece.input_ids) <= 40 for piece in pieces)
    assert (
        template()
        .hf.decode([t for piece in pieces for t in piece.input_ids])
        .endswith("x" * 100 + "<|im_end|>")
    )


SPELLED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "output": ({"instruction": "q", "input": "i", "output": "a"}, ["q\n\ni", "a"]),
    "input alone": ({"instruction": "", "input": "i", "output": "a"}, ["i", "a"]),
    "response": ({"instruction": "q", "response": "a"}, ["q", "a"]),
    "context": ({"instruction": "q", "context": "c", "response": "a", "category": "x"}, ["q\n\nc", "a"]),
    "question": ({"question": "q", "answer": "a"}, ["q", "a"]),
    "system_prompt": ({"system_prompt": "s", "question": "q", "response": "a"}, ["s", "q", "a"]),
    "history": ({"instruction": "q", "output": "a", "history": [["1", "2"]]}, ["1", "2", "q", "a"]),
}


@pytest.mark.parametrize("name", SPELLED)
def test_spellings_of_instructions(name: str, tmp_path: Path) -> None:
    value, expected = SPELLED[name]
    made = only(tmp_path, value)
    assert [m["content"] for m in made.messages] == expected
    assert made.weights == tuple(int(m["role"] == "assistant") for m in made.messages)


def test_bad_completions_are_not_learned(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "c", "completion": "d", "label": False},
    ]
    with pytest.raises(DataError, match=r"d\.jsonl:2: label: says that the completion is a bad one"):
        prepared(write(tmp_path / "d.jsonl", rows))
