"""Chat templates of adapters, rendered in processes of their own (``template_process.py``)."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.adapters.errors import ChatTemplateError
from manylora.server.errors import QueueFull
from manylora.server.fork_server import ForkServer, read_message, write_message

_SCRIPT = Path(__file__).with_name("template_process.py")
_START_SECONDS = 60.0  # the first process imports transformers
_PATIENCE = 5.0  # times the allowed CPU time that the server waits: the machine may be busy
_MAX_WAITING = 64  # conversations for one template
_MAX_ANSWER = 8 << 20  # bytes read of an answer, should a child have escaped its limits


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages, tools and variables that a chat template renders."""

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]  # special tokens by role, and what the request sets
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True

    def encode(self) -> bytes:
        """The conversation as JSON, in the form the rendering process reads."""
        return json.dumps(
            {
                "messages": [{k: v for k, v in m.items() if v is not None} for m in self.messages],
                "tools": None if self.tools is None else list(self.tools),
                "add_generation_prompt": self.add_generation_prompt,
                "variables": dict(self.variables),
            }
        ).encode()


class TemplateProcesses:
    """One process a template, made when it is first needed; the least recently used ones end.

    Belongs to one event loop. Nothing here blocks it but starting the first process, which takes
    milliseconds.
    """

    def __init__(self, *, seconds: float = 2.0, max_chars: int = 1 << 20, max_processes: int = 16) -> None:
        """A rendering may take ``seconds`` of CPU time and write ``max_chars``."""
        self._seconds = seconds
        self._max_chars = max_chars
        self._max_processes = max_processes
        self._children: OrderedDict[str, _Child] = OrderedDict()  # by digest, least recently used first
        self._forks = ForkServer(_SCRIPT)

    @property
    def num_processes(self) -> int:
        """Processes that render a template each; the one that forks them does not count."""
        return len(self._children)

    async def render(self, digest: str, template: str, conversation: Conversation) -> str:
        """The conversation as ``template`` (named by ``digest``) writes it.

        Raises:
            ChatTemplateError: it fails, takes too long or writes too much.
            QueueFull: too many conversations wait for this template.
        """
        child = self._children.get(digest)
        if child is None:
            child = self._children[digest] = _Child(template, self._seconds, self._max_chars)
        self._children.move_to_end(digest)
        child.waiting += 1
        try:
            if child.waiting > _MAX_WAITING:
                raise QueueFull(
                    f"{_MAX_WAITING} conversations wait for the chat template of this adapter", 1.0
                )
            return await child.render(self._open, conversation)
        finally:
            child.waiting -= 1
            self._end_idle()

    async def close(self) -> None:
        """End the processes that render."""
        for child in self._children.values():
            child.disconnect()
        self._children.clear()
        await self._forks.close()

    def _end_idle(self) -> None:
        idle = [digest for digest, child in self._children.items() if not child.waiting]
        for digest in idle[: max(len(self._children) - self._max_processes, 0)]:
            self._children.pop(digest).disconnect()

    def _open(self) -> socket.socket:
        """Start a process that renders; the socket to it."""
        try:
            return self._forks.fork()
        except OSError as error:
            raise ChatTemplateError("the process that renders chat templates can't be started") from error


class _Child:
    """The process of one template; it is forked again after it was killed."""

    def __init__(self, template: str, seconds: float, max_chars: int) -> None:
        self.waiting = 0
        self._first = json.dumps({"template": template, "seconds": seconds, "max_chars": max_chars}).encode()
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def render(self, open_socket: Any, conversation: Conversation) -> str:
        async with self._turn:
            try:
                return await self._ask(open_socket, conversation.encode())
            except BaseException:  # an answer that comes later would be taken for the next one's
                self.disconnect()
                raise

    async def _ask(self, open_socket: Any, conversation: bytes) -> str:
        fresh = self._streams is None
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=open_socket(), limit=_MAX_ANSWER)
            write_message(self._streams[1], self._first)
        reader, writer = self._streams
        write_message(writer, conversation)
        patience = _PATIENCE * self._seconds + (_START_SECONDS if fresh else 0)
        try:
            async with asyncio.timeout(patience):
                answer = json.loads(await read_message(reader, _MAX_ANSWER))
        except (TimeoutError, OSError, EOFError, ValueError) as error:
            raise ChatTemplateError(
                f"it did not end within {self._seconds:g} seconds of CPU time, or was killed for its memory"
            ) from error
        if "error" in answer:
            raise ChatTemplateError(str(answer["error"]))
        return str(answer["text"])

    def disconnect(self) -> None:
        """End the process; it reads the end of its input, or is killed by its timer."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
