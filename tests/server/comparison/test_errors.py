"""What a comparison refuses, and which parameter it blames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manylora.server.api.http.limits import MAX_COMPARE_PROMPTS, MAX_COMPARE_TOKENS
from tests.support.adapters import write_adapter
from tests.support.running_server import Running
from tests.support.served_adapters import MESSAGES
from tests.support.tiny_models import byte_tokenizer

BODY: dict[str, Any] = {"targets": ["tiny", "alpha"], "messages": MESSAGES}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"targets": ["tiny"]}, (400, "targets", None)),
        ({"targets": ["tiny"] * 9}, (400, "targets", None)),
        ({"targets": ["tiny", 1]}, (400, "targets[1]", None)),
        ({"targets": ["tiny", "nobody"]}, (404, "targets[1]", "model_not_found")),
        ({"targets": ["nobody!", "tiny"]}, (404, "targets[0]", "model_not_found")),
        ({"targets": ["tiny", "alpha", "alpha@0000"]}, (404, "targets[2]", "model_not_found")),
        ({"targets": ["tiny", "alpha*9"]}, (400, "targets[1]", "invalid_mix")),
        ({"targets": ["tiny", "alpha*x"]}, (400, "targets[1]", "invalid_mix")),
        ({"targets": ["tiny", "+alpha"]}, (400, "targets[1]", "invalid_mix")),
        ({"messages": None}, (400, "messages", None)),
        ({"prompt": "x"}, (400, "prompt", None)),
        ({"messages": None, "prompt": ["x"] * (MAX_COMPARE_PROMPTS + 1)}, (400, "prompt", None)),
        ({"messages": None, "conversations": [MESSAGES] * 17}, (400, "conversations", None)),
        ({"messages": None, "conversations": [[]]}, (400, "conversations[0]", None)),
        ({"messages": None, "prompt": ""}, (400, "prompt", None)),
        ({"messages": None, "prompt": [[99999]]}, (400, "prompt", None)),
        ({"add_special_tokens": False}, (400, "add_special_tokens", None)),
        ({"reference": 2}, (400, "reference", None)),
        ({"reference": -1}, (400, "reference", None)),
        ({"reference": ""}, (400, "reference", None)),
        ({"reference": "x" * (MAX_COMPARE_TOKENS + 1)}, (400, "reference", None)),
        ({"reference": "x" * 1_000_000}, (400, "reference", None)),
        ({"reference": ["a", "b"]}, (400, "reference", None)),
        ({"reference": [1]}, (400, "reference", None)),
        ({"reference": 1.5}, (400, "reference", None)),
        ({"max_tokens": MAX_COMPARE_TOKENS + 1}, (400, "max_tokens", None)),
        ({"max_tokens": 0}, (400, "max_tokens", None)),
        ({"max_tokens": -1}, (400, "max_tokens", None)),
        ({"temperature": 3}, (400, "temperature", None)),
        ({"model": "tiny"}, (400, "model", "unsupported_parameter")),
        ({"n": 2}, (400, "n", "unsupported_parameter")),
        ({"targetz": []}, (400, "targetz", "unknown_parameter")),
        (
            {"messages": [{"role": "user", "content": "x" * 2100}]},
            (400, "messages", "context_length_exceeded"),
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 1900}], "reference": "y" * 200, "max_tokens": 1},
            (400, "reference", "context_length_exceeded"),
        ),
    ],
)
def test_refused(
    server: Running, stream: bool, changes: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    body = {**BODY, **changes, "stream": stream}
    with server.http() as http:
        answer = http.post("/v1/compare", json=body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status_code, error["param"], error["code"]) == expected, error["message"]


@pytest.mark.slow
def test_targets_with_different_tokenizers(server: Running, tmp_path: Path, model: Path) -> None:
    other = write_adapter(tmp_path / "other", model, seed=5)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["a whole sentence"])
    tokenizer.save_pretrained(other)
    server.call(server.service.adapters.admin.load("other", other))
    try:
        with server.http() as http:
            answer = http.post("/v1/compare", json={**BODY, "targets": ["tiny", "alpha", "other"]})
    finally:
        server.call(server.service.adapters.deletions.delete("other"))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "targets[2]"
    assert "tokenizers" in answer.json()["error"]["message"]
