"""What ``manylora compare`` asks: prompts from its options and from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.server.client.errors import Unusable

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class Questions:
    """The prompts of a comparison, as texts to continue or as conversations."""

    shown: tuple[str, ...]  # each as people read it
    prompt: list[str] | None = None
    conversations: list[Conversation] | None = None


def questions(prompts: Sequence[str], messages: Path | None, file: Path | None, *, raw: bool) -> Questions:
    """The prompts of a comparison, from options and files.

    Args:
        prompts: one user turn each.
        messages: a JSON file that holds one conversation, or a list of them.
        file: one prompt a line; a line that is a JSON object has ``messages``, as training data does.
        raw: prompts are continued as they are, without the chat template.

    Raises:
        Unusable: there is none, or a file can't be read.
    """
    found: list[str | Conversation] = list(prompts)
    if messages is not None:
        found += _conversations(messages)
    if file is not None:
        found += [
            _line(line, f"{file}:{i}") for i, line in enumerate(_read(file).splitlines(), 1) if line.strip()
        ]
    if not found:
        raise Unusable("nothing to ask: give --prompt, --messages or --file")
    if raw:
        texts = [item for item in found if isinstance(item, str)]
        if len(texts) < len(found):
            raise Unusable("--raw takes plain prompts, not conversations")
        return Questions(tuple(texts), prompt=texts)
    conversations = [[{"role": "user", "content": item}] if isinstance(item, str) else item for item in found]
    return Questions(tuple(_shown(item) for item in found), conversations=conversations)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Unusable(f"{path} can't be read: {reason}") from None


def _conversations(path: Path) -> list[Conversation]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise Unusable(f"{path} is not JSON: {error}") from None
    if _is_conversation(value):
        return [value]
    if isinstance(value, list) and value and all(map(_is_conversation, value)):
        return value
    raise Unusable(f"{path}: expected a list of messages, or a list of such lists")


def _line(text: str, where: str) -> str | Conversation:
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Unusable(f"{where}: not JSON: {error}") from None
    if not _is_conversation(value.get("messages")):
        raise Unusable(f"{where}: expected 'messages', a list of messages")
    conversation: Conversation = value["messages"]
    return conversation


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _shown(item: str | Conversation) -> str:
    if isinstance(item, str):
        return item
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in item)
