"""What runs with each key, so that it can be ended with the key."""

from __future__ import annotations

import asyncio
from typing import Any, Final

ENDED: Final = "manylora.ended"  # the entry of an ASGI scope: a list, of why its request was ended


class RunningRequests:
    """The tasks that answer requests, by key. Lives on the event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[asyncio.Task[Any], list[str]]] = {}

    def add(self, key_id: str, ended: list[str], task: asyncio.Task[Any]) -> None:
        """``task`` answers a request that came with that key; ``ended`` hears why it is cancelled."""
        if task not in (tasks := self._tasks.setdefault(key_id, {})):
            task.add_done_callback(lambda done: self._done(key_id, done))
        tasks[task] = ended

    def end(self, key_id: str) -> int:
        """Cancel what runs with that key; how many requests that were."""
        found = list(self._tasks.get(key_id, {}).items())
        for task, ended in found:
            ended.append("its key was revoked")
            task.cancel()
        return len(found)

    def _done(self, key_id: str, task: asyncio.Task[Any]) -> None:
        tasks = self._tasks.get(key_id, {})
        tasks.pop(task, None)
        if not tasks:
            self._tasks.pop(key_id, None)
