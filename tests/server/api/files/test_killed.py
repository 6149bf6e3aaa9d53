"""A server that is killed while an upload comes: what it answered is there at its next start."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import md5
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.server_process import ServerProcess, server_process, small_options

KILLS = 5


@contextmanager
def client_of(process: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.sweep  # starts a process for each time
def test_an_upload_survives_being_killed(tmp_path: Path, model: Path) -> None:
    options = [*small_options(model, tmp_path / "data"), "--files-url", f"file://{tmp_path}/disk"]
    content, size, chance = os.urandom(4 << 20), 1 << 18, random.Random(1)
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    parts: list[str] = []
    upload = ""
    for _ in range(KILLS):
        with server_process(*options) as process, client_of(process) as client:
            if not upload:
                upload = client.uploads.create(
                    bytes=len(content), filename="a", mime_type="text/plain", purpose="evals"
                ).id
            timer = threading.Timer(chance.uniform(0, 0.3), process.signal, [signal.SIGKILL])
            timer.start()
            with suppress(openai.APIConnectionError, httpx.TransportError):
                while len(parts) < len(chunks):
                    parts.append(client.uploads.parts.create(upload, data=chunks[len(parts)]).id)
            timer.join()
            process.process.wait(30)
    with server_process(*options) as process, client_of(process) as client:
        while len(parts) < len(chunks):
            parts.append(client.uploads.parts.create(upload, data=chunks[len(parts)]).id)
        killer = threading.Timer(0.02, process.signal, [signal.SIGKILL])
        killer.start()
        told = None
        with suppress(openai.APIConnectionError, httpx.TransportError):  # it is answered, or it is not
            told = client.uploads.complete(upload, part_ids=parts).file
        killer.join()
        process.process.wait(30)
    with server_process(*options) as process, client_of(process) as client:
        file = client.uploads.complete(upload, part_ids=parts).file
        assert file is not None
        assert told is None or told.id == file.id
        assert [each.id for each in client.files.list()] == [file.id]
        assert md5(client.files.content(file.id).content).digest() == md5(content).digest()
