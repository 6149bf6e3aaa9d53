"""Answers that are made of every replica's: metrics, and the list of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import orjson
from ray.serve.handle import DeploymentHandle

from manylora.server.cluster.exposition import merge_expositions

METRICS: Final = "/metrics"
REPLICAS: Final = "/v1/replicas"
_SECONDS = 5.0  # that replicas get to tell


def is_gathered(method: str, path: str) -> bool:
    """Whether all replicas are asked, once one has found that the caller may."""
    return method == "GET" and path in (METRICS, REPLICAS)


async def gathered(path: str, own: bytes, handle: DeploymentHandle[Any]) -> bytes:
    """The body that all replicas make together; ``own`` is that of the one which was asked first."""
    if path == METRICS:
        told = await _everybody(handle, "exposition")
        return merge_expositions(dict(sorted(told))).encode() if told else own
    listed = await _everybody(handle, "shown")
    listed.sort(key=lambda replica: str(replica["id"]))
    return orjson.dumps({**orjson.loads(own), "data": listed}) if listed else own


async def _everybody(handle: DeploymentHandle[Any], method: str) -> list[Any]:
    """What each replica says; those that don't in time are left out, so that a dying one hides no other."""
    response = handle.broadcast(method)
    results: Sequence[Any] = await response.results_async(timeout_s=_SECONDS, return_exceptions=True)
    return [result for result in results if not isinstance(result, BaseException)]


async def gathered_in_time(path: str, own: bytes, handle: DeploymentHandle[Any]) -> bytes:
    """As :func:`gathered`, or ``own`` alone if asking takes too long."""
    try:
        async with asyncio.timeout(2 * _SECONDS):
            return await gathered(path, own, handle)
    except TimeoutError:
        return own
