"""Waiting for what another thread or process is about to do, without guessing how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, sleep

PATIENCE = 30.0  # seconds after which something that should have happened has not


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as ``condition`` holds.

    Raises:
        AssertionError: it does not, after a long while.
    """
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.0005)


def wait_until(condition: Callable[[], object]) -> None:
    """The same where no event loop runs, of another process.

    Raises:
        AssertionError: it does not hold after a long while.
    """
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "it never happened"
        sleep(0.005)
