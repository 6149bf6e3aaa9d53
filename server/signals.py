"""Signals that would end a process at once end it by an exception, so that nothing half-written stays."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def leave(number: int, _frame: object = None) -> None:
    """A handler that ends the process by ``SystemExit``, with the status shells give to the signal; once."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


@contextmanager
def leaving_by_exception() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise ``SystemExit``, as SIGINT raises ``KeyboardInterrupt``.

    Signals that are ignored (``nohup``) or handled already stay so. In the main thread only.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    taken = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
