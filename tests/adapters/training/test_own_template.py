"""A chat template of the run's own: rows are written by it, and the adapter brings it along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.errors import AdapterError
from manylora.adapters.format.files import TEMPLATE_NAME
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import CheckpointError, TrainingConfigError
from manylora.adapters.training.session.own_template import base_of
from tests.support.paths import ROOT
from tests.support.running_server import serving, tiny_service
from tests.support.training_data import chat, write
from tests.support.training_runs import config, run

OWN = (ROOT / "examples" / "training" / "tools.jinja").read_text()
TOOL = {"type": "function", "function": {"name": "note", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "note", "arguments": {"n": 1}}}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"say {n}"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ],
        "tools": [TOOL],
    }
    for n in range(12)
]


def settings(base: Path, root: Path, template: str | bytes = OWN, **changes: Any) -> TrainConfig:
    """Two steps on rows with calls, which the base's template has no place for."""
    path = root / "own.jinja"
    path.write_bytes(template if isinstance(template, bytes) else template.encode())
    options: dict[str, Any] = {"chat_template": path, "max_steps": 2, "max_length": 512}
    return config(base, root, ROWS, **options | changes)


def test_the_base_has_no_place_for_tools(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="tools: this model's chat template has no place for them"):
        run(settings(tiny_llama, tmp_path, chat_template=None))


@pytest.mark.slow
def test_it_is_trained_with_saved_and_served(tiny_llama: Path, tmp_path: Path) -> None:
    asked = settings(tiny_llama, tmp_path, save_steps=1)
    result = run(asked)
    assert (result.adapter / TEMPLATE_NAME).read_text() == OWN
    service = tiny_service(tiny_llama, tmp_path / "data", adapter={"own": result.adapter})
    with serving(service) as server, server.http() as http:
        details = http.get("/v1/adapters/own").json()["details"]
        assert details["format"]["calls"].startswith("<tool_call>")
        body = {"messages": [{"role": "user", "content": "say 1"}], "tools": [TOOL], "max_tokens": 4}
        assert http.post("/v1/chat/completions", json={**body, "model": "own"}).status_code == 200
        assert http.post("/v1/chat/completions", json={**body, "model": "tiny"}).status_code == 400
    settings(tiny_llama, tmp_path, OWN + " ")  # writes another template to the same file
    with pytest.raises(CheckpointError, match="another the text of chat_template"):
        run(asked, resume=True)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\xff\xfe", "can't be read"),
        (b"x" * (1 << 20) + b"y", "has over"),
        (b"{% for m in messages %}", "end of template"),
        (b"{{ raise_exception('no questions') }}", "no questions"),
        (b"{{ messages[9].content }}", "chat template rejects"),
        (b"{# nothing #}", "writes nothing"),
        (b"{{ ''.__class__.__mro__ }}", "chat template rejects"),
    ],
)
def test_templates_that_cannot_be_used(template: bytes, said: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingConfigError, match=f"--chat-template .*own.jinja.*{said}"):
        base_of(settings(tiny_llama, tmp_path, template))


def test_a_file_that_is_not_there(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingConfigError, match="can't be read"):
        base_of(settings(tiny_llama, tmp_path, chat_template=tmp_path / "nowhere"))


def test_only_tasks_with_conversations_have_one(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [chat("a", "b")])
    with pytest.raises(ValueError, match="chat_template: a classifier reads no conversations"):
        TrainConfig(
            train_path=data, output_dir=tmp_path / "o", task="classification", chat_template=tmp_path / "t"
        )
