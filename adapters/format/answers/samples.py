"""Sample conversations rendered by a chat template, by whose differences its ways of writing are seen.

Imports nothing of ours: templates of strangers are rendered in a bounded process.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401  # imported on demand, which a bounded process can no more
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2.debug  # noqa: F401  # as well
from jinja2 import TemplateError, ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Texts of the samples, found again in what is written. Nothing that a template could hold itself.
USER, SAID, THOUGHT = "qz user qz", "qz said qz", "qz thought qz"
NAMES = ("qzfirstqz", "qzsecondqz")
KEY, VALUES = "qzkeyqz", ("qz value a", "qz value b")
MAX_CHARS = 1 << 17  # of one rendering

_IDS = {"nine": ("qz1234567", "qz7654321"), "long": ("call_qz12345678901", "call_qz10987654321")}
_PARAMETERS = {
    "type": "object",
    "properties": {KEY: {"type": "string", "description": "qz what qz"}},
    "required": [KEY],
}
_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "qz tool qz", "parameters": _PARAMETERS}}
    for name in NAMES
]


def render_samples(argument: Mapping[str, Any]) -> dict[str, str | None]:
    """The renderings by name, of ``{"template", "special"}``; None where the template refuses a sample."""
    template = _compile(argument["template"])
    return {name: _render(template, {**argument["special"], **given}) for name, given in _samples().items()}


def _samples() -> dict[str, dict[str, Any]]:
    user = {"role": "user", "content": USER}
    said = {"role": "assistant", "content": SAID}
    thought = {**said, "reasoning_content": THOUGHT}
    calls = {form: _calls(ids) for form, ids in _IDS.items()}
    one, two = {**said, "tool_calls": calls["nine"][:1]}, {**said, "tool_calls": calls["nine"]}
    bare = {"role": "assistant", "content": "", "tool_calls": calls["nine"][:1]}
    longer = {"role": "assistant", "content": "", "tool_calls": calls["long"][:1]}
    told = {"tools": None, "add_generation_prompt": False}
    return {
        "thought": {**told, "messages": [user, thought]},
        "prompt": {**told, "messages": [user], "tools": _TOOLS, "add_generation_prompt": True},
        "one": {**told, "messages": [user, bare], "tools": _TOOLS},
        "long": {**told, "messages": [user, longer], "tools": _TOOLS},
        "said_one": {**told, "messages": [user, one], "tools": _TOOLS},
        "two": {**told, "messages": [user, {**bare, "tool_calls": calls["nine"]}], "tools": _TOOLS},
        "said_two": {**told, "messages": [user, two], "tools": _TOOLS},
        "said_tools": {**told, "messages": [user, said], "tools": _TOOLS},
    }


def _calls(ids: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": {KEY: value}}}
        for id_, name, value in zip(ids, NAMES, VALUES, strict=True)
    ]


def _compile(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime(2026, 1, 1).strftime(form)
    return environment.from_string(template)


def _render(template: Any, given: Mapping[str, Any]) -> str | None:
    try:
        text = template.render(**given)
    except Exception:  # a template is a program that runs on the messages: it raises anything
        return None
    return text if len(text) <= MAX_CHARS else None


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Generation(ext.Extension):
    """transformers' tag around what a model is trained on."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 reads it from the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read the template up to the closing tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
