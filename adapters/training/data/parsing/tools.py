"""Tool definitions and calls, as OpenAI and as LLaMA-Factory write them, to what chat templates take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.parsing.record import Record
from manylora.adapters.training.data.reading.strict_json import loads
from manylora.adapters.training.data.rows import Tools


def parse_tools(record: Record, name: str = "tools") -> Tools | None:
    """The row's tool definitions; absent, null and empty are none."""
    return read_tools(record.get(name), record, record.name(name))


def read_tools(value: object, record: Record, field: str) -> Tools | None:
    """Tool definitions: a list or its JSON, of OpenAI's objects or of the functions alone."""
    if isinstance(value, str) and value.strip():
        try:
            value = loads(value)
        except (ValueError, RecursionError) as error:
            record.say(f"{field}: is not JSON: {error}")
            return None
    if value is None or value in ("", []):
        return ()
    if isinstance(value, list):
        tools = [_tool(item) for item in value]
        if all(tool is not None for tool in tools):
            return tuple(tool for tool in tools if tool is not None)
    record.say(f'{field}: must be a list of {{"type": "function", "function": {{"name": ...}}}}')
    return None


def _tool(item: object) -> Mapping[str, Any] | None:
    if not isinstance(item, dict):
        return None
    if isinstance(item.get("name"), str) and "function" not in item:
        item = {"type": "function", "function": item}
    function = item.get("function")
    return item if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def parse_calls(value: object, role: str, faults: list[str]) -> list[dict[str, Any]]:
    """The calls of a turn, their arguments as objects, as chat templates expect them."""
    if value is None or value in ("", []):
        return []
    if role != "assistant":
        faults.append(".tool_calls: only assistant messages have tool calls")
        return []
    if isinstance(value, str):
        try:
            value = loads(value)
        except (ValueError, RecursionError):
            value = shown(value)
    if not isinstance(value, list):
        faults.append(f".tool_calls: must be a list, not {shown(value)}")
        return []
    found = [_call(item, f".tool_calls[{index}]", faults) for index, item in enumerate(value)]
    return [call for call in found if call is not None]


def calls_in_text(text: object, key: str, faults: list[str]) -> list[dict[str, Any]]:
    """The calls of a turn whose text is their JSON: one ``{"name", "arguments"}`` or a list of them."""
    try:
        value = loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        faults.append(f".{key}: a function call must be JSON with name and arguments: {error}")
        return []
    calls = []
    for item in value if isinstance(value, list) else [value]:
        call = _call({"function": item}, f".{key}", faults)
        calls += [] if call is None else [call]
    return calls


def _call(item: object, where: str, faults: list[str]) -> dict[str, Any] | None:
    function = item.get("function") if isinstance(item, dict) else None
    if (
        not isinstance(item, dict)
        or not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
    ):
        faults.append(f'{where}: must be {{"function": {{"name": ..., "arguments": ...}}}}')
        return None
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = loads(arguments)
        except (ValueError, RecursionError):
            faults.append(f"{where}.function.arguments: is not JSON: {shown(arguments)}")
            return None
    return {**item, "type": "function", "function": {**function, "arguments": arguments}}
