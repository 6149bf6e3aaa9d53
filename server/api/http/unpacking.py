"""Bodies in gzip, Brotli or Zstandard: unpacked while they are read, never more at a time than a piece."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Final, Protocol

from starlette.types import Receive

from manylora.server.errors import BodyTooLarge, RequestError

PIECE: Final = 64 * 1024  # bytes that are unpacked at a time
_GZIP: Final = 31  # zlib's window bits for gzip with its header and checksum
_ZSTD_WINDOW: Final = 23  # 2^23 bytes, 8 MiB: what RFC 9659 has senders stay within


class Unpacker(Protocol):
    """What unpacks one body."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data``, the next part of the body, unpacks to, in pieces of at most :data:`PIECE` or so.

        Raises:
            ValueError: the data are wrong.
        """

    @property
    def is_complete(self) -> bool:
        """Whether the body may end here."""


class GzipUnpacker:
    """One or several gzip members."""

    def __init__(self) -> None:
        self._member: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether no member is open."""
        return self._member is None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` unpacks to."""
        piece = b""
        while data or len(piece) == PIECE:
            if self._member is None:
                self._member = zlib.decompressobj(_GZIP)
            try:
                piece = self._member.decompress(data, PIECE)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            data = self._member.unconsumed_tail
            if self._member.eof:
                data, self._member = self._member.unused_data, None
            if piece:
                yield piece
            if self._member is None:
                piece = b""


class BrotliUnpacker:
    """One Brotli stream."""

    def __init__(self, brotli: Any) -> None:
        self._brotli = brotli
        self._stream = brotli.Decompressor()
        self._begun = False

    @property
    def is_complete(self) -> bool:
        """Whether the stream has ended, or has not begun."""
        return not self._begun or bool(self._stream.is_finished())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` unpacks to."""
        self._begun = True
        while True:
            try:
                piece: bytes = self._stream.process(data, output_buffer_limit=PIECE)
            except self._brotli.error as error:
                raise ValueError(str(error)) from None
            if piece:
                yield piece
            data = b""
            if not piece:
                return


class ZstdUnpacker:
    """One or several Zstandard frames."""

    def __init__(self, zstd: Any) -> None:
        self._zstd = zstd
        self._frame: Any = None

    @property
    def is_complete(self) -> bool:
        """Whether no frame is open."""
        return self._frame is None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` unpacks to."""
        while data or (self._frame is not None and not self._frame.needs_input):
            if self._frame is None:
                bound = {self._zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
                self._frame = self._zstd.ZstdDecompressor(options=bound)
            try:
                piece: bytes = self._frame.decompress(data, PIECE)
            except self._zstd.ZstdError as error:
                raise ValueError(str(error)) from None
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
            if piece:
                yield piece


def unpackers() -> dict[str, Callable[[], Unpacker]]:
    """What unpacks each encoding that this installation can read."""
    found: dict[str, Callable[[], Unpacker]] = {"gzip": GzipUnpacker, "x-gzip": GzipUnpacker}
    brotli = _module("brotli")
    if brotli is not None and _bounds_output(brotli):
        found["br"] = lambda: BrotliUnpacker(brotli)
    zstd = _module("compression.zstd") or _module("backports.zstd")
    if zstd is not None:
        found["zstd"] = lambda: ZstdUnpacker(zstd)
    return found


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def _bounds_output(brotli: Any) -> bool:
    """Whether this version can unpack a little at a time; one that can't would unpack a bomb whole."""
    try:
        brotli.Decompressor().process(b"", output_buffer_limit=PIECE)
    except TypeError:
        return False
    return True


async def unpacked(receive: Receive, unpacker: Unpacker, limit: int) -> Any:
    """The messages of a body, unpacked; whatever is received after them is no part of it.

    Raises:
        RequestError: the data are wrong, or end too early.
        BodyTooLarge: the packed body has more than ``limit`` bytes.
    """
    seen, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            yield message
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        seen += len(data)
        if seen > limit:
            raise BodyTooLarge(f"The packed request body is larger than {limit} bytes")
        try:
            for piece in unpacker.pieces(data) if data else ():
                yield {"type": "http.request", "body": piece, "more_body": True}
                await asyncio.sleep(0)  # a small body may unpack to very much
        except ValueError as error:
            raise _wrong(str(error)) from None
    if not unpacker.is_complete:
        raise _wrong("it ends too early")
    yield {"type": "http.request", "body": b"", "more_body": False}


def _wrong(reason: str) -> RequestError:
    return RequestError(
        f"The request body is not what its Content-Encoding says: {reason[:200]}", code="invalid_encoding"
    )
