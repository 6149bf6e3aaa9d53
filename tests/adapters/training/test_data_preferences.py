"""Preferences in every shape: two answers, two conversations that begin alike, with a prompt and without."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.training.data.rows import PreferenceRow
from manylora.adapters.training.errors import DataError
from tests.support.training_data import prepared, told, write


def turn(role: str, content: str, shape: tuple[str, str] = ("role", "content")) -> dict[str, Any]:
    return {shape[0]: role, shape[1]: content}


def messages(
    *texts: str, shape: tuple[str, str] = ("role", "content"), system: str = ""
) -> list[dict[str, Any]]:
    names = {"role": ("user", "assistant"), "from": ("human", "gpt")}[shape[0]]
    made = [turn(names[index % 2], text, shape) for index, text in enumerate(texts)]
    return [turn("system", system, shape), *made] if system else made


def only(tmp_path: Path, value: Any) -> PreferenceRow:
    (row,) = prepared(write(tmp_path / "d.jsonl", [value]), task="dpo").train.rows
    assert isinstance(row, PreferenceRow)
    return row


BEFORE = [("a",), ("a", "b", "c"), ("a", "b", "c", "d", "e")]
SHAPES = [("role", "content"), ("from", "value")]
PROMPTS = ["none", "text", "messages", "column messages", "unrelated"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("system", ["", "be kind"])
def test_whole_conversations_share_their_beginning(prompt: str, system: str, tmp_path: Path) -> None:
    for before, shape in itertools.product(BEFORE, SHAPES):
        shared = messages(*before, shape=shape, system=system)
        value: dict[str, Any] = {
            "chosen": messages(*before, "good", shape=shape, system=system),
            "rejected": messages(*before, "bad", shape=shape, system=system),
            "score_chosen": 8.0,
        }
        given: dict[str, Any] = {"text": before[-1], "messages": shared, "unrelated": "something else"}
        if prompt in given:
            value["prompt"] = given[prompt]
        if prompt == "column messages":
            value["messages"] = value["chosen"]
        row = only(tmp_path, value)
        expected = messages(*before, system=system)
        assert [dict(message) for message in row.prompt] == expected
        assert (row.chosen["content"], row.rejected["content"]) == ("good", "bad")
    if prompt == "unrelated":
        warnings = prepared(tmp_path / "d.jsonl", task="dpo").warnings
        assert any("prompt: not how the conversations begin" in message for _, message in told(warnings))


def test_the_system_turn_of_the_prompt_alone(tmp_path: Path) -> None:
    value = {
        "prompt": messages("a", system="s"),
        "chosen": messages("a", "good"),
        "rejected": messages("a", "bad"),
    }
    assert [m["content"] for m in only(tmp_path, value).prompt] == ["s", "a"]


ANSWERS: dict[str, dict[str, Any]] = {
    "text": {"chosen": "good", "rejected": "bad"},
    "one message": {"chosen": turn("assistant", "good"), "rejected": turn("assistant", "bad")},
    "a list of one": {"chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]},
    "from and value": {
        "chosen": turn("gpt", "good", ("from", "value")),
        "rejected": turn("gpt", "bad", ("from", "value")),
    },
    "chosen_response": {"chosen_response": "good", "rejected_response": "bad"},
}
ASKED: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "a"},
    "messages as prompt": {"prompt": messages("a")},
    "instruction": {"instruction": "a", "input": ""},
    "question": {"question": "a"},
    "messages": {"messages": messages("a")},
    "conversations": {"conversations": messages("a", shape=("from", "value"))},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("answers", ANSWERS)
def test_prompts_and_answers_of_every_shape(answers: str, asked: str, tmp_path: Path) -> None:
    row = only(tmp_path, ASKED[asked] | ANSWERS[answers])
    assert [dict(m) for m in row.prompt] == messages("a")
    assert (row.chosen["content"], row.rejected["content"]) == ("good", "bad")
    with_system = only(tmp_path, ASKED[asked] | ANSWERS[answers] | {"system": "s"})
    assert with_system.prompt[0] == turn("system", "s")


def test_conversations_as_one_text(tmp_path: Path) -> None:
    begin = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = only(tmp_path, {"chosen": f"{begin} good", "rejected": f"{begin} bad\n\nstill bad"})
    assert [dict(m) for m in row.prompt] == messages("a", "b", "c")
    assert (row.chosen["content"], row.rejected["content"]) == ("good", "bad\n\nstill bad")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"chosen": "x", "rejected": "y"}, "share no beginning and there is no prompt"),
    "the same": ({"chosen": messages("a", "b"), "rejected": messages("a", "b")}, "are the same"),
    "diverge early": (
        {"chosen": messages("a", "b", "c", "d"), "rejected": messages("a", "x", "c", "y")},
        "chosen: must be exactly one assistant message after the 1 turns that both share",
    ),
    "one ends early": (
        {"chosen": messages("a", "b", "c", "d"), "rejected": messages("a", "b")},
        "chosen: must be exactly one assistant message after the 2 turns that both share",
    ),
    "ends with a user": ({"chosen": messages("a", "b"), "rejected": messages("a")}, "rejected: must be"),
    "role": ({"chosen": [turn("bot", "x")], "rejected": "y", "prompt": "a"}, "chosen[0].role: 'bot'"),
    "number": ({"chosen": 4, "rejected": "y", "prompt": "a"}, "chosen: must be a list of messages"),
    "prompt": ({"chosen": "x", "rejected": "y", "prompt": 3}, "prompt: must be a list of messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_preferences_have_line_and_key(name: str, tmp_path: Path) -> None:
    value, message = BROKEN[name]
    with pytest.raises(DataError) as caught:
        prepared(write(tmp_path / "d.jsonl", ["", value]), task="dpo")
    assert str(caught.value).startswith(f"{tmp_path / 'd.jsonl'}:2: ")
    assert message in str(caught.value)
