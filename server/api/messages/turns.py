"""The turns of a Messages request: read, and turned into the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from manylora.adapters.format.faults import shown
from manylora.adapters.format.text.chat import join_parts
from manylora.server.api.http import limits
from manylora.server.api.http.body import check_size
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.hand_read import known_fields, one_of, text_of
from manylora.server.errors import RequestError

ChatMessage = dict[str, Any]

_ROLES: Final = ("user", "assistant", "system")
_ERROR: Final = "Error: "  # before the result of a tool that failed


def read_system(value: Any) -> str:
    """What ``system`` says: a text, or blocks of text.

    Raises:
        RequestError: naming what is wrong by its path.
    """
    return value if isinstance(value, str) else _joined(value, "system")


def read_turns(value: Any) -> list[ChatMessage]:
    """The turns of a conversation as messages of a chat.

    The result of a tool is a message of its own. Turns of one side that follow one another are one turn.

    Raises:
        RequestError: naming what is wrong by its path.
    """
    if not isinstance(check_size(value, limits.MAX_MESSAGES, "messages"), list) or not value:
        raise RequestError("'messages' must be a list of turns that is not empty", "messages")
    messages: list[ChatMessage] = []
    for index, turn in enumerate(value):
        for message in _read_turn(turn, f"messages[{index}]"):
            _add(messages, message)
    return messages


def _read_turn(value: Any, where: str) -> list[ChatMessage]:
    if not isinstance(value, dict) or len(value) > limits.MAX_FIELDS:
        raise RequestError(f"'{where}' must be a turn: an object", where)
    kept = known_fields(value, Place.TURN, where)
    role = one_of(kept.get("role"), _ROLES, f"{where}.role")
    content = kept.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _blocks(content, _READERS[role], f"{where}.content")
    if role == "assistant":
        return [_assistant(blocks)]
    return [*_grouped(blocks, role)] or [{"role": role, "content": ""}]


def _blocks(value: Any, readers: Mapping[str, Reader], where: str) -> list[Block]:
    if not isinstance(check_size(value, limits.MAX_PARTS, where), list):
        raise RequestError(f"'{where}' must be a text, or a list of blocks", where)
    return [_block(each, readers, f"{where}[{index}]") for index, each in enumerate(value)]


def _block(value: Any, readers: Mapping[str, Reader], where: str) -> Block:
    kind = value.get("type") if isinstance(value, dict) else None
    reader = readers.get(kind) if isinstance(kind, str) else None
    if reader is None or len(value) > limits.MAX_FIELDS:
        raise RequestError(
            f"'{where}.type': {shown(str(kind))} is not supported by this server: blocks here are "
            f"{', '.join(readers)}",
            f"{where}.type",
            "unsupported_parameter",
        )
    return reader(value, where)


# A block as it is read: its kind, and what chats know of it.
Block = tuple[str, Any]
Reader = Callable[[dict[str, Any], str], Block]


def _text(value: dict[str, Any], where: str) -> Block:
    return "text", text_of(known_fields(value, Place.BLOCK_TEXT, where), "text", where)


def _thinking(value: dict[str, Any], where: str) -> Block:
    return "thinking", text_of(known_fields(value, Place.BLOCK_THINKING, where), "thinking", where)


def _redacted(value: dict[str, Any], where: str) -> Block:
    known_fields(value, Place.BLOCK_REDACTED, where)
    return "redacted_thinking", None


def _tool_use(value: dict[str, Any], where: str) -> Block:
    kept = known_fields(value, Place.BLOCK_TOOL_USE, where)
    arguments = kept.get("input")
    if not isinstance(arguments, dict):
        raise RequestError(f"'{where}.input' must be an object", f"{where}.input")
    name = text_of(kept, "name", where, limits.MAX_FUNCTION_NAME_LENGTH)
    call_id = text_of(kept, "id", where, limits.MAX_CALL_ID_LENGTH)
    return "tool_use", {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool_result(value: dict[str, Any], where: str) -> Block:
    kept = known_fields(value, Place.BLOCK_TOOL_RESULT, where)
    content, failed = kept.get("content", ""), kept.get("is_error", False)
    text = content if isinstance(content, str) else _joined(content, f"{where}.content")
    if not isinstance(failed, bool):
        raise RequestError(f"'{where}.is_error' must be true or false", f"{where}.is_error")
    call_id = text_of(kept, "tool_use_id", where, limits.MAX_CALL_ID_LENGTH)
    said = f"{_ERROR}{text}" if failed else text
    return "tool_result", {"role": "tool", "tool_call_id": call_id, "content": said}


_TEXTS: Final[Mapping[str, Reader]] = {"text": _text}
_READERS: Final[Mapping[str, Mapping[str, Reader]]] = {
    "system": _TEXTS,
    "user": {**_TEXTS, "tool_result": _tool_result},
    "assistant": {
        **_TEXTS,
        "tool_use": _tool_use,
        "thinking": _thinking,
        "redacted_thinking": _redacted,
    },
}


def _joined(value: Any, where: str) -> str:
    """The text of blocks that hold nothing else."""
    return join_parts([text for _, text in _blocks(value, _TEXTS, where)])


def _grouped(blocks: list[Block], role: str) -> list[ChatMessage]:
    """The blocks of one who does not answer: texts between results of tools are one message."""
    messages: list[ChatMessage] = []
    for kind, content in blocks:
        if kind == "tool_result":
            messages.append(content)
        else:
            _add(messages, {"role": role, "content": content})
    return messages


def _assistant(blocks: list[Block]) -> ChatMessage:
    """What the assistant thought, said and called in one turn."""
    found: dict[str, list[Any]] = {}
    for kind, content in blocks:
        found.setdefault(kind, []).append(content)
    message: ChatMessage = {"role": "assistant", "content": join_parts(found.get("text", []))}
    if "thinking" in found:
        message["reasoning_content"] = join_parts(found["thinking"])
    if "tool_use" in found:
        message["tool_calls"] = found["tool_use"]
    return message


def _add(messages: list[ChatMessage], message: ChatMessage) -> None:
    """Add a message, or what it says to the last one if that is of the same side."""
    last = messages[-1] if messages else None
    if last is None or message["role"] == "tool" or last["role"] != message["role"]:
        messages.append(message)
        return
    both = {
        "content": join_parts([each["content"] for each in (last, message) if each["content"]]),
        "reasoning_content": join_parts(
            [each["reasoning_content"] for each in (last, message) if "reasoning_content" in each]
        ),
        "tool_calls": [*last.get("tool_calls", []), *message.get("tool_calls", [])],
    }
    messages[-1] = {
        "role": last["role"],
        **{name: value for name, value in both.items() if value or name == "content"},
    }
