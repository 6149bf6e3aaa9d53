"""Data files and templates for the trainer's tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manylora.adapters.training.data.faults import Finding
from manylora.adapters.training.data.prepare import DataConfig, Prepared, prepare
from manylora.adapters.training.data.template import Template
from tests.support.tiny_models import byte_tokenizer

EOS = 258

# Writes tools, tool calls and names, which the plain template has no place for.
RICH_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}{{ ' ' + m['name'] if m['name'] else '' }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(chat_template: str | None = RICH_TEMPLATE, **options: bool) -> Template:
    """A template over the byte tokenizer."""
    hf = byte_tokenizer()
    hf.chat_template = chat_template
    return Template(hf, [EOS], **options)


def chat(question: str, answer: str) -> dict[str, Any]:
    """One row of OpenAI's messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON Lines; text and bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else _line(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _line(row: Any) -> str:
    return row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)


def prepared(path: Path, chat_template: str | None = RICH_TEMPLATE, **changes: Any) -> Prepared:
    """The data of one file, nothing held out unless asked for."""
    options: dict[str, Any] = {
        "task": "sft",
        "train_path": path,
        "eval_path": None,
        "eval_split": 0.0,
        "max_length": 512,
        "seed": 0,
    }
    return prepare(DataConfig(**{**options, **changes}), template(chat_template))


def told(findings: Sequence[Finding]) -> list[tuple[int, str]]:
    """Line and message of each finding."""
    return [(finding.line, finding.message) for finding in findings]
