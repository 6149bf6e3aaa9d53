"""A server whose answers are written by the test: everything runs but the choice of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manylora.server.api.generate import chat
from manylora.server.engine.batch import Batch
from manylora.server.service import Service
from tests.support import tool_templates as templates
from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer, tiny_model

CHAT = "/v1/chat/completions"

# What the models of :func:`tool_service` write.
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"


@dataclass
class Scripted:
    """A running server that answers every request with ``text`` and the end token."""

    running: Running
    text: str = ""
    tokens: list[int] | None = None  # instead of ``text``

    def ids(self) -> list[int]:
        """The answer in tokens, its end included."""
        tokenizer = self.running.service.tokenizer
        own = tokenizer.encode(self.text, add_special_tokens=False) if self.tokens is None else self.tokens
        return [*own, min(tokenizer.eos_ids)]

    def choose(self, batch: Batch) -> list[int]:
        """The next token of every sequence that draws one."""
        ids = self.ids()
        return [ids[min(s.num_output_tokens, len(ids) - 1)] for s, _ in batch.sampling]

    def ask(self, text: str | Sequence[int], *, status: int = 200, **body: Any) -> dict[str, Any]:
        """The whole answer to a request, whose answer is ``text``."""
        self._set(text)
        with self.running.http() as http:
            answer = http.post(CHAT, json=_request(body))
        assert answer.status_code == status, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def stream(self, text: str | Sequence[int], **body: Any) -> list[dict[str, Any]]:
        """The chunks of the same, streamed."""
        self._set(text)
        chunks = []
        with (
            self.running.http() as http,
            http.stream("POST", CHAT, json=_request({**body, "stream": True})) as lines,
        ):
            assert lines.status_code == 200
            for line in lines.iter_lines():
                if line.startswith("data: {"):
                    chunks.append(json.loads(line.removeprefix("data: ")))
        return chunks

    def _set(self, text: str | Sequence[int]) -> None:
        self.text, self.tokens = (text, None) if isinstance(text, str) else ("", list(text))


def _request(body: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **body}


def tool_service(root: Path, **options: Any) -> Service:
    """A base that calls tools as Hermes does, an adapter "plain", and one, "thinking", that also thinks."""
    model = tiny_model(root / "model", max_position_embeddings=2048)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = templates.HERMES
    tokenizer.save_pretrained(model)
    plain = write_adapter(root / "plain", model, targets="all-linear")
    thinking = write_adapter(root / "thinking", model)
    (thinking / "chat_template.jinja").write_text(templates.THINKING)
    adapters = {"thinking": thinking, "plain": plain}
    return tiny_service(model, root / "data", adapter=adapters, kv_cache_memory=32 << 20, **options)


@contextmanager
def scripted(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Serve ``service`` with answers that tests write."""
    with serving(service) as running:
        made = Scripted(running)
        monkeypatch.setattr(chat, "answer_grammar", lambda *_, **__: None)  # whatever a test writes is taken
        monkeypatch.setattr(service.core, "draw_tokens", lambda _, batch: made.choose(batch))
        yield made
        running.wait_until_idle()


def gathered(chunks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that the chunks of a stream add up to, as a client adds them up."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for entry in chunk["choices"]:
            choice = choices.setdefault(entry["index"], {"message": {}, "finish_reason": None})
            choice["finish_reason"] = entry["finish_reason"] or choice["finish_reason"]
            _add(choice["message"], entry["delta"])
    return [choices[index] for index in sorted(choices)]


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for part in value:
                if part["index"] == len(calls):
                    assert set(part) == {"index", "id", "type", "function"}, "id and name come first"
                    calls.append({k: v for k, v in part.items() if k != "index"})
                else:
                    assert part["index"] == len(calls) - 1
                    assert set(part) == {"index", "function"}
                    assert set(part["function"]) == {"arguments"}
                    calls[-1]["function"]["arguments"] += part["function"]["arguments"]
        elif isinstance(value, str) and isinstance(message.get(name), str):
            message[name] += value
        else:
            message[name] = value
