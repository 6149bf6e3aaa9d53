"""An archive or a GGUF file sent as the body itself, as ``curl --data-binary @adapter.zip`` sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

from fastapi import Request

from manylora.adapters.format.foreign.gguf.reader import MAGIC
from manylora.adapters.sources.archives import MAGIC_BYTES, is_archive, unpack
from manylora.server.api.admin.publish_request import FetchProgress, PublishRequest
from manylora.server.errors import RequestError
from manylora.server.service import Service

ARCHIVE_TYPES = frozenset(
    {
        "application/zip", "application/x-zip", "application/x-zip-compressed", "application/x-tar",
        "application/tar", "application/tar+gzip", "application/gzip", "application/x-gzip",
        "application/x-gtar", "application/x-tgz", "application/x-compressed-tar",
    }
)  # fmt: skip
_ANY_BYTES = "application/octet-stream"
_MAX_OTHER = 1 << 20  # bytes of a body that is no archive: what names a source takes some hundred
GGUF_NAME = "adapter.gguf"  # a body has no name of its own
_BATCH = 1 << 20  # bytes written at a time


async def receive_archive(request: Request, service: Service, subfolder: str) -> PublishRequest | Request:
    """Receive the archive or GGUF file that a body is; where it is none, the request to read as JSON.

    Told by the content type, or by its first bytes: not every client sends a type that says it. Whatever goes
    wrong, also a client that leaves half way, nothing stays on disk.

    Raises:
        RequestError: the content type promises bytes of a file, and they are no archive's.
        BodyTooLarge: more bytes than an upload may have.
        ClientDisconnect: the client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = request.stream()
    head = await _first(body, MAGIC_BYTES)
    if kind in ARCHIVE_TYPES or is_archive(head) or head.startswith(MAGIC):
        return await _received(head, body, service, subfolder)
    if kind == _ANY_BYTES:
        raise RequestError(
            "The body is no .zip, .tar, .tar.gz or .gguf: send one of the adapter, or its files as a form "
            "(multipart/form-data)",
            code="invalid_archive",
        )
    return _replayed(request, await _rest(head, body))


async def _first(body: AsyncIterator[bytes], count: int) -> bytes:
    head = bytearray()
    async for chunk in body:
        head += chunk
        if len(head) >= count:
            break
    return bytes(head)


async def _rest(head: bytes, body: AsyncIterator[bytes]) -> bytes:
    content = bytearray(head)
    async for chunk in body:
        content += chunk
        if len(content) > _MAX_OTHER:
            raise RequestError("The body is neither an archive nor a short JSON object", code="invalid_json")
    return bytes(content)


def _replayed(request: Request, content: bytes) -> Request:
    """The request as it was before its body was read."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    return Request(request.scope, receive)


async def _received(
    head: bytes, body: AsyncIterator[bytes], service: Service, subfolder: str
) -> PublishRequest:
    kept = ExitStack()
    try:
        directory = await asyncio.to_thread(kept.enter_context, service.store.temporary())
        path = directory / "archive"
        await _write(path, head, body)
    except BaseException:
        kept.close()
        raise
    progress = FetchProgress()
    progress.nbytes = progress.total = path.stat().st_size

    def fetch(into: Path) -> None:
        with kept, path.open("rb") as archive:
            if head.startswith(MAGIC):
                path.rename(into / GGUF_NAME)
            else:
                unpack(archive, into, service.sources, subfolder)

    return PublishRequest("upload://", "body", None, fetch, kept.close, progress)


async def _write(path: Path, head: bytes, body: AsyncIterator[bytes]) -> None:
    batch = bytearray(head)
    with await asyncio.to_thread(path.open, "xb") as file:
        async for chunk in body:
            batch += chunk
            if len(batch) >= _BATCH:
                await asyncio.to_thread(file.write, bytes(batch))
                batch.clear()
        await asyncio.to_thread(file.write, bytes(batch))
