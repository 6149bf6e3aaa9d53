"""Descriptions of data sets by Axolotl and LLaMA-Factory: their files are read as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from manylora.adapters.training.data.rows import ChatRow, PlainRow, PreferenceRow
from manylora.adapters.training.errors import DataError
from tests.support.training_data import prepared, told

TALK = [{"who": "person", "says": "a"}, {"who": "machine", "says": "b"}]
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

PLAIN = "{instruction}"
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag")
# name: (the row of the file, the entry that describes it)
FACTORY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": ({"instruction": "a", "input": "", "output": "b"}, {}),
    "alpaca columns": (
        {"q": "a", "r": "b", "s": "sys", "h": [["1", "2"]]},
        {"columns": {"prompt": "q", "response": "r", "system": "s", "history": "h"}},
    ),
    "sharegpt": ({"conversations": SHARED}, {"formatting": "sharegpt"}),
    "sharegpt columns": (
        {"talk": SHARED, "s": "sys", "f": "[]"},
        {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "s", "tools": "f"}},
    ),
    "sharegpt tags": (
        {"talk": TALK},
        {
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": dict(zip(TAGS, ("who", "says", "person", "machine"), strict=True)),
        },
    ),
    "openai": (
        {"messages": CHAT},
        {
            "formatting": "openai",
            "columns": {"messages": "messages"},
            "tags": dict(zip(TAGS, ("role", "content", "user", "assistant"), strict=True)),
        },
    ),
}  # fmt: skip

MAPPED = {"field_messages": "talk", "message_property_mappings": {"role": "who", "content": "says"}}
ROLES = {"roles": {"user": ["person"], "assistant": ["machine"]}}
AXOLOTL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": ({"instruction": "a", "input": "", "output": "b"}, {"type": "alpaca"}),
    "gpteacher": ({"instruction": "a", "response": "b"}, {"type": "gpteacher"}),
    "load_qa": ({"question": "a", "answer": "b"}, {"type": "alpaca_chat.load_qa"}),
    "open orca": (
        {"system_prompt": "sys", "question": "a", "response": "b"},
        {"type": "alpaca_w_system.load_open_orca"},
    ),
    "user defined": (
        {"q": "a", "r": "b", "s": "sys"},
        {"type": {"field_instruction": "q", "field_output": "r", "field_system": "s", "format": PLAIN}},
    ),
    "chat_template": ({"messages": CHAT}, {"type": "chat_template"}),
    "migrated": (
        {"conversations": SHARED},
        {
            "type": "chat_template",
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
        },
    ),
    "sharegpt": ({"conversations": SHARED}, {"type": "sharegpt", "conversation": "chatml"}),
    "older": (
        {"conversations": SHARED},
        {"field_messages": "conversations", "message_field_role": "from", "message_field_content": "value"},
    ),
    "mapped": ({"talk": TALK}, {"type": "chat_template", **MAPPED, **ROLES}),
}  # fmt: skip


def factory(folder: Path, value: Any, **entry: Any) -> Path:
    (folder / "rows.json").write_text(json.dumps([value]))
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json", **entry}}))
    return folder / "dataset_info.json"


def axolotl(folder: Path, value: Any, entry: dict[str, Any], **top: Any) -> Path:
    (folder / "rows.jsonl").write_text(json.dumps(value) + "\n")
    content = {"datasets": [{"path": "rows.jsonl", **entry}], **top}
    (folder / "axolotl.yml").write_text(yaml.safe_dump(content))
    return folder / "axolotl.yml"


def texts(path: Path) -> list[str]:
    (row,) = prepared(path).train.rows
    assert isinstance(row, ChatRow)
    return [message["content"] for message in row.messages][-2:]


@pytest.mark.parametrize("name", FACTORY)
def test_llama_factory(name: str, tmp_path: Path) -> None:
    value, entry = FACTORY[name]
    path = factory(tmp_path, value, **entry)
    assert texts(path) == texts(tmp_path) == ["a", "b"]
    (row,) = prepared(path).train.rows
    assert isinstance(row, ChatRow)
    assert (row.messages[0]["role"] == "system") == ("s" in value)


@pytest.mark.parametrize("name", AXOLOTL)
def test_axolotl(name: str, tmp_path: Path) -> None:
    value, entry = AXOLOTL[name]
    assert texts(axolotl(tmp_path, value, entry)) == ["a", "b"]


def test_instruction_and_input_as_llama_factory_joins_them(tmp_path: Path) -> None:
    assert texts(factory(tmp_path, {"instruction": "a", "input": "i", "output": "b"})) == ["a\ni", "b"]


@pytest.mark.parametrize("learned", [True, False])
def test_the_key_that_says_what_is_learned(learned: bool, tmp_path: Path) -> None:
    turns = [*TALK, TALK[0], TALK[1] | {"teach": learned}]
    entry = {**MAPPED, **ROLES, "message_field_training": "teach", "roles_to_train": [] if learned else None}
    (row,) = prepared(axolotl(tmp_path, {"talk": turns}, entry)).train.rows
    assert isinstance(row, ChatRow)
    assert row.weights == ((0, 0, 0, 1) if learned else (0, 1, 0, 0))


FACTORY_PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": ({"instruction": "a", "chosen": "x", "rejected": "y"}, {"columns": {"prompt": "instruction"}}),
    "sharegpt": (
        {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1] | {"value": "y"}},
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "chosen": "chosen"}},
    ),
}  # fmt: skip
AXOLOTL_PAIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "intel": ({"system": "", "question": "a", "chosen": "x", "rejected": "y"}, "chatml.intel"),
    "chat_template": ({"messages": CHAT[:1], "chosen": CHAT[1], "rejected": "y"}, "chat_template.default"),
    "argilla": ({"chosen": CHAT, "rejected": [CHAT[0], CHAT[1] | {"content": "y"}]}, "chatml.argilla_chat"),
    "user defined": (
        {"p": "a", "c": "x", "r": "y"},
        {"field_prompt": "p", "field_chosen": "c", "field_rejected": "r"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FACTORY_PAIRS, *AXOLOTL_PAIRS])
def test_preferences(name: str, tmp_path: Path) -> None:
    if name in FACTORY_PAIRS:
        value, entry = FACTORY_PAIRS[name]
        path = factory(tmp_path, value, ranking=True, **entry)
    else:
        value, kind = AXOLOTL_PAIRS[name]
        path = axolotl(tmp_path, value, {"type": kind}, rl="dpo")
    (row,) = prepared(path, task="dpo").train.rows
    assert isinstance(row, PreferenceRow)
    assert [m["content"] for m in row.prompt] == ["a"]
    assert row.rejected["content"] == "y"


def test_plain_text(tmp_path: Path) -> None:
    paths = [
        factory(tmp_path, {"body": "t"}, columns={"prompt": "body"}),
        axolotl(tmp_path, {"body": "t"}, {"type": "completion", "field": "body"}),
    ]
    for path in paths:
        (row,) = prepared(path).train.rows
        assert isinstance(row, PlainRow)
        assert row.text == "t"


def test_several_data_sets(tmp_path: Path) -> None:
    for name in "ab":
        row = {"instruction": name, "output": "x"}
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps(row) + "\n" + json.dumps(row | {"output": "y"}) + "\n"
        )
    entries = {name: {"file_name": f"{name}.jsonl"} for name in "ab"} | {
        "few": {"file_name": "a.jsonl", "num_samples": 1}
    }
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"describes a, b, few: choose with --dataset NAME"):
        prepared(path)
    assert len(prepared(path, dataset=("a", "b")).train.rows) == 4
    assert len(prepared(path, dataset=("few",)).train.rows) == 1
    with pytest.raises(DataError, match=r"--dataset c: not described; there are a, b, few"):
        prepared(path, dataset=("c",))


def test_a_folder_and_held_out_sets(tmp_path: Path) -> None:
    path = axolotl(
        tmp_path, {"messages": CHAT}, {}, test_datasets=[{"path": "other.jsonl", "type": "alpaca"}]
    )
    (tmp_path / "other.jsonl").write_text('{"instruction": "q", "output": "o"}\n')
    data = prepared(path, eval_path=path)
    assert data.eval is not None
    assert (len(data.train.rows), len(data.eval.rows)) == (1, 1)
    assert any("test_datasets: read where" in message for _, message in told(prepared(path).warnings))
    (tmp_path / "folder").mkdir()
    for name in ("a.jsonl", "b.json"):
        (tmp_path / "folder" / name).write_text(json.dumps({"instruction": name, "output": "o"}))
    assert len(prepared(tmp_path / "folder").train.rows) == 2


ROW = {"instruction": "a", "output": "b"}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"fields": {}}, "datasets[0].fields: asks for what is not done here"),
    "shards": ({"shards": 4}, "datasets[0].shards: asks for what is not done here"),
    "detail": ({"message_field_training_detail": "d"}, "datasets[0].message_field_training_detail: "),
    "users learned": ({"roles_to_train": ["user"]}, "datasets[0].roles_to_train: "),
    "no ends": ({"train_on_eos": "none"}, "datasets[0].train_on_eos: 'none'"),
    "split": ({"split": "test"}, "datasets[0].split: a file has one split"),
    "type": ({"type": "context_qa.x"}, "datasets[0].type: 'context_qa.x' is not read here"),
    "format": ({"type": {"field_input": "q", "format": "[I] {input}"}}, "datasets[0].type.format: "),
    "no file": ({"path": "org/name"}, "datasets[0].path: there is no such file"),
    "path": ({"path": 4}, "datasets[0]: must be an object with path and type"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_an_axolotl_entry_asks_for_in_vain(name: str, tmp_path: Path) -> None:
    entry, message = BROKEN[name]
    with pytest.raises(DataError) as caught:
        prepared(axolotl(tmp_path, ROW, {"type": "alpaca", **entry}))
    assert f"axolotl.yml: {message}" in str(caught.value)


FACTORY_BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "formatting": ({"formatting": "chatml"}, "mine: formatting: 'chatml' is none of alpaca"),
    "columns": ({"columns": {"promt": "a"}}, "mine: columns.promt: none of"),
    "images": ({"columns": {"images": "i"}}, "mine: columns.images: not trained on here"),
    "kto": ({"columns": {"kto_tag": "k"}}, "mine: columns.kto_tag: not trained on here"),
    "tags": ({"tags": ["a"]}, "mine: tags: must be names of keys"),
    "split": ({"split": "test"}, "mine: split: a file has one split"),
    "samples": ({"num_samples": 0}, "mine: num_samples: must be a number of rows, not 0"),
    "file": ({"file_name": "none.json"}, "mine: file_name: there is no such file"),
    "key": ({"file": "x"}, "mine: file: not a key of a data set"),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORY_BROKEN)
def test_what_a_dataset_info_asks_for_in_vain(name: str, tmp_path: Path) -> None:
    entry, message = FACTORY_BROKEN[name]
    with pytest.raises(DataError) as caught:
        prepared(factory(tmp_path, ROW, **entry))
    assert f"dataset_info.json: {message}" in str(caught.value)


@pytest.mark.parametrize(
    "entry", [{"hf_hub_url": "org/name"}, {"script_url": "s"}, {"cloud_file_name": "s3"}]
)
def test_data_sets_that_are_not_here(entry: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    with pytest.raises(DataError, match="is not a file here: download it"):
        prepared(tmp_path / "dataset_info.json")


@pytest.mark.parametrize(
    "text", ["a: [", "- 1\n- 2\n", "base_model: x\n", "datasets: 4\n", "datasets: []\n", ""]
)
def test_yaml_that_describes_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=r"a\.yaml"):
        prepared(tmp_path / "a.yaml")


def test_faults_of_rows_name_the_key_of_the_file(tmp_path: Path) -> None:
    bad = {"talk": [{"who": "person", "says": "a"}, {"who": "alien", "says": "b"}]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: talk\[1\]\.who: 'alien' is none of"):
        prepared(axolotl(tmp_path, bad, {**MAPPED, **ROLES}))
    empty = {"talk": [{"who": "person", "says": "a"}, {"who": "machine", "says": ""}]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: talk\[1\]\.says: is empty"):
        prepared(axolotl(tmp_path, empty, {**MAPPED, **ROLES}))
    with pytest.raises(DataError, match=r"rows\.json:1: r: is empty"):
        prepared(factory(tmp_path, {"q": "a", "r": ""}, columns={"prompt": "q", "response": "r"}))
