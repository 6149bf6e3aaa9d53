"""Answers made of those of all replicas: metrics, the list of replicas, and what is done on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import orjson
from ray.serve.handle import DeploymentHandle
from starlette.types import Message

from manylora.server.cluster.exposition import merge_expositions
from manylora.server.cluster.ray.call import Call

METRICS: Final = "/metrics"
REPLICAS: Final = "/v1/replicas"
_SECONDS = 5.0  # that replicas get to tell
_DONE = (200, 404)  # 404: there was nothing to do


def is_gathered(method: str, path: str) -> bool:
    """Whether all replicas are asked, once one has found that the caller may."""
    return method == "GET" and path in (METRICS, REPLICAS)


def is_for_all(method: str, path: str) -> bool:
    """Whether a request changes what a replica has in memory, and so goes to all of them."""
    return (method == "POST" and path.endswith("/evict")) or (method == "DELETE" and path.endswith("/merge"))


async def refusal_elsewhere(call: Call, handle: DeploymentHandle[Any]) -> list[Message] | None:
    """Have all replicas but the one that did it do what a call asks; the answer of one that can't."""
    others = Call(call.request, call.asked, target=call.note.replica)
    for answer in await _everybody(handle, "repeat", others):
        if answer and answer[0]["status"] not in _DONE:
            return list(answer)
    return None


async def gathered(path: str, own: bytes, handle: DeploymentHandle[Any]) -> bytes:
    """The body that all replicas make together; ``own`` is that of the one which was asked first."""
    if path == METRICS:
        told = await _everybody(handle, "exposition")
        return merge_expositions(dict(sorted(told))).encode() if told else own
    listed = await _everybody(handle, "shown")
    listed.sort(key=lambda replica: str(replica["id"]))
    return orjson.dumps({**orjson.loads(own), "data": listed}) if listed else own


async def _everybody(handle: DeploymentHandle[Any], method: str, *arguments: object) -> list[Any]:
    """What each replica says; those that don't in time are left out, so that a dying one hides no other."""
    response = handle.broadcast(method, *arguments)
    results: Sequence[Any] = await response.results_async(timeout_s=_SECONDS, return_exceptions=True)
    return [result for result in results if not isinstance(result, BaseException)]


async def gathered_in_time(path: str, own: bytes, handle: DeploymentHandle[Any]) -> bytes:
    """As :func:`gathered`, or ``own`` alone if asking takes too long."""
    try:
        async with asyncio.timeout(2 * _SECONDS):
            return await gathered(path, own, handle)
    except TimeoutError:
        return own
