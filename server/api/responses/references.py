"""Ids of items, which say what response they are of, and items that are named by them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from manylora.adapters.format.faults import shown
from manylora.server.api.http import limits
from manylora.server.errors import ObjectNotFound, RequestError
from manylora.server.responses.stored import Item, StoredResponse

REFERENCE: Final = "item_reference"
INPUT, OUTPUT = "i", "o"  # whether an item was given, or is an answer

_PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
_ID: Final = re.compile(r"[a-z]+_([0-9a-f]{32})[io][0-9]+")

Find = Callable[[str, str], Awaitable[StoredResponse]]  # a response by its id; blames a parameter


def item_id(kind: str, response_id: str, side: str, index: int) -> str:
    """The id of an item of a response, such as ``msg_5b0c…o0``. Who knows one can tell the response's."""
    return f"{_PREFIXES[kind]}_{response_id.removeprefix('resp_')}{side}{index}"


def with_ids(items: Iterable[Item], response_id: str) -> list[Item]:
    """Items of a request; those that came without an id get one."""
    return [
        item if item["id"] else {**item, "id": item_id(item["type"], response_id, INPUT, index)}
        for index, item in enumerate(items)
    ]


async def with_references(items: list[Item], find: Find) -> list[Item]:
    """``items`` with what is referred to in its place.

    Raises:
        RequestError: too many responses are referred to.
        ObjectNotFound: there is no such item.
    """
    found: dict[str, StoredResponse] = {}
    return [
        await _referred(item["id"], f"input[{index}].id", find, found) if item["type"] == REFERENCE else item
        for index, item in enumerate(items)
    ]


async def _referred(own: str, param: str, find: Find, found: dict[str, StoredResponse]) -> Item:
    match = _ID.fullmatch(own)
    response_id = f"resp_{match[1]}" if match else ""
    if match and response_id not in found:
        if len(found) >= limits.MAX_REFERRED_RESPONSES:
            most = limits.MAX_REFERRED_RESPONSES
            raise RequestError(f"'input' refers to items of more than {most} responses", param)
        with suppress(ObjectNotFound):  # it is an item that was asked for
            found[response_id] = await find(response_id, param)
    response = found.get(response_id)
    items: list[dict[str, Any]] = [] if response is None else [*response.input, *response.response["output"]]
    item = next((item for item in items if item["id"] == own), None)
    if item is None:
        raise ObjectNotFound(f"No item found with id '{shown(own)[1:-1]}'", param)
    return item
