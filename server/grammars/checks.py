"""Grammars are tried in a process that may be killed before they are compiled in this one."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manylora.server.fork_server import ForkServer, read_message, write_message
from manylora.server.grammars.grammar import LIMITS
from manylora.server.grammars.refusal import GrammarRefused
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.grammars.vocabulary import Vocabulary

_SCRIPT = Path(__file__).with_name("check_process.py")
_MEMORY = 256 << 20  # bytes that a check may take
_PATIENCE = 4.0  # times the allowed CPU time that is waited for: the machine may be busy
_START_SECONDS = 30.0  # more for the first one: the process has to start
_MAX_ANSWER = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Checked:
    """A grammar that the library takes."""

    text: str  # to be compiled
    left_out: tuple[str, ...]  # paths of what a lenient schema is not held to


class GrammarChecks:
    """Tries grammars, each in a process of its own. Belongs to one event loop."""

    def __init__(self, *, seconds: float = 0.5) -> None:
        """A check may take ``seconds`` of CPU time."""
        self._seconds = seconds
        self.forks = ForkServer(_SCRIPT)
        self._started = False

    async def check(self, spec: GrammarSpec, vocabulary: Vocabulary) -> Checked:
        """What the library is to compile.

        Raises:
            GrammarRefused: it does not take the grammar, or takes too long.
        """
        try:
            answer = await self._ask(_request(spec, vocabulary, self._seconds))
        except (TimeoutError, OSError, EOFError, ValueError) as error:
            raise GrammarRefused(
                f"it takes more than {self._seconds:g} seconds or {_MEMORY >> 20} MiB to compile"
            ) from error
        if "error" in answer:
            raise GrammarRefused(answer["error"], answer["path"])
        return Checked(answer["text"], tuple(answer["left_out"]))

    async def close(self) -> None:
        """End the process."""
        await self.forks.close()

    async def _ask(self, request: bytes) -> dict[str, Any]:
        """The last of the child's messages that arrives in time; it may be killed while it looks for more."""
        reader, writer = await asyncio.open_connection(sock=self._fork(), limit=_MAX_ANSWER)
        answer: dict[str, Any] | None = None
        patience = _PATIENCE * self._seconds + (0 if self._started else _START_SECONDS)
        try:
            write_message(writer, request)
            async with asyncio.timeout(patience):
                while True:
                    answer = json.loads(await read_message(reader, _MAX_ANSWER))
                    self._started = True
        except (TimeoutError, EOFError, OSError):
            if answer is None:
                raise
            return answer
        finally:
            writer.close()

    def _fork(self) -> socket.socket:
        return self.forks.fork()


def _request(spec: GrammarSpec, vocabulary: Vocabulary, seconds: float) -> bytes:
    return json.dumps(
        {
            "kind": spec.kind.value,
            "text": spec.text,
            "style": asdict(spec.style),
            "preface": None if spec.preface is None else asdict(spec.preface),
            "tokens": vocabulary.num_tokens,
            "special": vocabulary.control_tokens,
            "ends": vocabulary.end_ids,
            "limits": LIMITS,
            "seconds": seconds,
            "memory": _MEMORY,
        }
    ).encode()
