"""A process that forks: children start in a millisecond, with what their script has imported.

The script gets the descriptor of a socket as its argument. Over that it is sent the descriptors of sockets,
forks a child for each, which serves that one, and ends when the first socket closes. On both sides messages
are eight bytes of length and JSON.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_GRACE = 1.0  # seconds in which a process without work ends
_KEPT_VARIABLES = ("PATH", "LANG", "TZ", "HOME", "LD_LIBRARY_PATH")
_SET_VARIABLES = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class ForkServer:
    """Runs ``script``, from when it is first needed on. Nothing here blocks but its start: milliseconds."""

    def __init__(self, script: Path) -> None:
        self._script = script
        self.running: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def fork(self) -> socket.socket:
        """The socket to a new child. What it is sent before the script has started waits for it.

        Raises:
            OSError: no process can be started.
        """
        with suppress(OSError):  # the process may have been killed meanwhile
            return self._fork()
        if self.running is not None:
            self._end()
        return self._fork()

    async def close(self) -> None:
        """End the process; its children end with their sockets."""
        if self.running is not None:
            await asyncio.to_thread(self._end)

    def _fork(self) -> socket.socket:
        if self.running is None:
            self.running = self._start()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.running[1], [b"f"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        environment = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", str(self._script), str(theirs.fileno())],
                env=environment | _SET_VARIABLES,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        return process, ours

    def _end(self) -> None:
        assert self.running is not None
        (process, control), self.running = self.running, None
        control.close()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_message(writer: asyncio.StreamWriter, message: bytes) -> None:
    """Send one message."""
    writer.write(len(message).to_bytes(8, "little") + message)


async def read_message(reader: asyncio.StreamReader, limit: int) -> bytes:
    """Read one message of at most ``limit`` bytes.

    Raises:
        EOFError: there is none, or it is longer.
    """
    length = int.from_bytes(await reader.readexactly(8), "little")
    if length > limit:
        raise EOFError("the message is too long")
    return await reader.readexactly(length)
