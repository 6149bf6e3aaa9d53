"""OpenAI's messages: checked one by one, and turned into what the chat template takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.format.text.chat import join_parts, template_message
from manylora.adapters.training.data.rows import Messages, Tools

ROLES = ("system", "developer", "user", "assistant", "tool")
_KEPT = ("name", "tool_call_id")
_KNOWN = frozenset({"role", "content", "weight", "tool_calls", *_KEPT})
_EMPTY_IN_ANSWERS = ("refusal", "audio", "annotations", "function_call")  # OpenAI sends them back as null

Say = Callable[[str], None]  # takes one fault


@dataclass(frozen=True, slots=True)
class Parsed:
    """Messages for the template and which of them are learned."""

    messages: Messages
    weights: tuple[int, ...]


def parse_messages(value: object, say: Say, field: str = "messages") -> Parsed | None:
    """The messages of a row; every fault is told, and with any there is no result."""
    if not isinstance(value, list) or not value:
        say(f"{field}: must be a list of messages, and not empty (it is {shown(value)})")
        return None
    found = [_message(item, f"{field}[{index}]", say) for index, item in enumerate(value)]
    if any(item is None for item in found):
        return None
    whole = [item for item in found if item is not None]
    return Parsed(tuple(message for message, _ in whole), tuple(weight for _, weight in whole))


def parse_tools(value: object, say: Say) -> Tools | None:
    """OpenAI's tool definitions; absent and null are none."""
    if value is None:
        return ()
    if isinstance(value, list) and all(
        isinstance(tool, dict)
        and isinstance(tool.get("function"), dict)
        and isinstance(tool["function"].get("name"), str)
        for tool in value
    ):
        return tuple(value)
    say('tools: must be a list of {"type": "function", "function": {"name": ...}}')
    return None


def _message(value: object, where: str, say: Say) -> tuple[Mapping[str, Any], int] | None:
    if not isinstance(value, dict):
        say(f"{where}: must be an object with role and content, not {shown(value)}")
        return None
    faults: list[str] = []
    role = _role(value, faults)
    calls = _tool_calls(value.get("tool_calls"), role, faults)
    content = _content(value.get("content"), bool(calls), faults)
    weight = _weight(value, role, faults)
    faults += _unknown(value)
    for fault in faults:
        say(f"{where}{fault}")
    if faults:
        return None
    fields = {name: value[name] for name in _KEPT if value.get(name) is not None}
    if calls:
        fields["tool_calls"] = calls
    return template_message(role, content, **fields), weight


def _role(value: Mapping[str, Any], faults: list[str]) -> str:
    role = value.get("role")
    if role is None:
        faults.append(": has no role: add one of " + ", ".join(ROLES))
    elif role == "function":
        faults.append(".role: 'function' is OpenAI's old name: use 'tool', and tool_calls before it")
    elif role not in ROLES:
        faults.append(f".role: {shown(role)} is none of {', '.join(ROLES)}")
    return role if isinstance(role, str) else ""


def _content(value: object, may_be_empty: bool, faults: list[str]) -> str:
    if isinstance(value, list):
        texts = [p.get("text") for p in value if isinstance(p, dict) and p.get("type") == "text"]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            faults.append('.content: only parts {"type": "text", "text": ...} can be trained on')
            return ""
        value = join_parts([str(text) for text in texts])
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        faults.append(f".content: must be text, not {shown(value)}")
        return ""
    if not value.strip() and not may_be_empty:
        faults.append(".content: is empty: write the text or leave the message out")
    return value


def _weight(value: Mapping[str, Any], role: str, faults: list[str]) -> int:
    weight = value.get("weight")
    if weight is None:
        return int(role == "assistant")
    if role != "assistant":
        faults.append(".weight: only assistant messages have a weight")
    elif isinstance(weight, bool) or weight not in (0, 1):
        faults.append(f".weight: must be 0 or 1, not {shown(weight)}")
    return int(weight == 1)


def _tool_calls(value: object, role: str, faults: list[str]) -> list[dict[str, Any]]:
    """The calls with their arguments as objects, as chat templates expect them."""
    if value is None or value == []:
        return []
    if role != "assistant":
        faults.append(".tool_calls: only assistant messages have tool calls")
        return []
    if not isinstance(value, list):
        faults.append(f".tool_calls: must be a list, not {shown(value)}")
        return []
    return [call for index, item in enumerate(value) if (call := _call(item, index, faults)) is not None]


def _call(item: object, index: int, faults: list[str]) -> dict[str, Any] | None:
    function = item.get("function") if isinstance(item, dict) else None
    if (
        not isinstance(item, dict)
        or not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
    ):
        faults.append(f'.tool_calls[{index}]: must be {{"function": {{"name": ..., "arguments": ...}}}}')
        return None
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            faults.append(f".tool_calls[{index}].function.arguments: is not JSON: {shown(arguments)}")
            return None
    return {**item, "type": "function", "function": {**function, "arguments": arguments}}


def _unknown(value: Mapping[str, Any]) -> list[str]:
    unknown = [key for key in value if key not in _KNOWN]
    return [
        f".{key}: is not a field of a message; remove it"
        for key in unknown
        if not (key in _EMPTY_IN_ANSWERS and not value[key])
    ]
