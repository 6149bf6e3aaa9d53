"""How much of the code one request passes before the engine has it: what someone new reads to follow it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from manylora.server.api.app import create_app
from manylora.server.engine.async_engine import AsyncEngine
from manylora.server.service import Service
from tests.support.paths import ROOT
from tests.support.raw_requests import AsgiExchange
from tests.support.served_adapters import service_of

MAX_FILES = 38
GENERATE = "server/api/generate/generate.py"


class CallTrace:
    """The functions of this repository that the current task enters, until a request is submitted.

    Tasks that it starts count; what else the event loop runs meanwhile does not.
    """

    def __init__(self) -> None:
        self.files: list[str] = []  # in the order they are first entered
        self.entries: list[tuple[str, str, str]] = []  # (file, function, file it was entered from)
        self.submitted = False
        self._frames: set[FrameType] = set()  # kept, so that a coroutine that goes on is not a new entry
        self._traced = ContextVar("traced", default=False)  # tasks inherit it

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record within the block what this task enters."""
        token = self._traced.set(True)
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._traced.reset(token)

    def entries_of(self, file: str) -> list[str]:
        """The functions of ``file`` that other files of the repository have called, in order.

        A nested function or a generator that the file has handed out itself is no entry.
        """
        return [
            f"{function} from {caller}"
            for entered, function, caller in self.entries
            if entered == file and "<locals>" not in function
        ]

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not self._traced.get():
            return
        if frame.f_code is AsyncEngine.submit.__code__:
            self.submitted = True
            sys.setprofile(None)
            return
        file = file_of(frame)
        if file is None or frame in self._frames:
            return
        self._frames.add(frame)
        if file not in self.files:
            self.files.append(file)
        caller = _caller(frame)
        if caller != file:
            self.entries.append((file, frame.f_code.co_qualname, caller or "outside"))


def file_of(frame: FrameType) -> str | None:
    """The frame's file relative to the repository; None for one that is not of the two packages."""
    path = Path(frame.f_code.co_filename)
    root = ROOT / "manylora" if path.is_relative_to(ROOT / "manylora") else ROOT
    if not path.is_relative_to(root):
        return None
    file = path.relative_to(root)
    return file.as_posix() if file.parts[0] in {"server", "adapters"} else None


def _caller(frame: FrameType) -> str | None:
    """The file of the repository that the frame was called from, whatever libraries lie between."""
    above = frame.f_back
    while above is not None:
        file = file_of(above)
        if file is not None:
            return file
        above = above.f_back
    return None


async def trace_chat_request(service: Service, chat: dict[str, Any]) -> CallTrace:
    """Trace one chat request on a service that has answered the same before."""
    app, trace = create_app(service), CallTrace()
    async with app.router.lifespan_context(app):
        for _ in range(2):
            warm_up = AsgiExchange(chat)
            await warm_up.run(app)
            assert warm_up.sent[0]["status"] == 200
        with trace.recording():
            await AsgiExchange(chat).run(app)
    return trace


@pytest.mark.parametrize("model_string", ["tiny", "alpha", "alpha*0.5+beta*0.5"])
async def test_a_chat_request_passes_few_files_before_it_is_submitted(
    tmp_path: Path, model: Path, adapters: Path, model_string: str
) -> None:
    chat = {
        "model": model_string,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2,
        "stream": True,
    }
    trace = await trace_chat_request(service_of(tmp_path, model, adapters), chat)
    assert trace.submitted
    assert len(trace.entries_of(GENERATE)) == 1, trace.entries_of(GENERATE)
    assert len(trace.files) <= MAX_FILES, "\n".join(trace.files)
