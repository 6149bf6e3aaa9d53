"""A ``multipart/form-data`` body, written to disk while it arrives and never held in memory as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from manylora.server.api.http.limits import (
    MAX_PART_HEADER_BYTES,
    MAX_UPLOAD_FIELD_BYTES,
    MAX_UPLOAD_PARTS,
)
from manylora.server.errors import RequestError

_BATCH = 1 << 20  # bytes


@dataclass
class Form:
    """A received form: its files by the names their sender gave them, and its text fields."""

    files: list[tuple[str, Path]] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)
    file_fields: list[str] = field(default_factory=list)  # the names of the parts that hold the files


def is_multipart(content_type: str) -> bool:
    """Whether a ``content-type`` header announces a form with files."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def is_json(content_type: str) -> bool:
    """Whether a ``content-type`` header announces JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in {"application/json", "text/json"} or kind.endswith("+json")


async def receive_form(
    body: AsyncIterator[bytes], content_type: str, directory: Path, *, batch_bytes: int = _BATCH
) -> Form:
    """Write the files of a form into ``directory``, which is the caller's to remove, as ``0``, ``1``, ….

    The names that the sender gave are only told, never used as paths. The parser runs in a worker thread,
    on ``batch_bytes`` or more at a time.

    Raises:
        RequestError: not a well-formed form, or more parts and longer fields than are allowed.
        Whatever ``body`` raises: its sender left, or sends too much.
    """
    writer = _Writer(content_type, directory)
    try:
        batch = bytearray()
        async for chunk in body:
            batch += chunk
            if len(batch) >= batch_bytes:
                await asyncio.to_thread(writer.feed, bytes(batch))
                batch.clear()
        await asyncio.to_thread(writer.feed, bytes(batch))
        writer.finish()
    finally:
        writer.close()
    return writer.form


class _Part:
    """The part that is being read."""

    def __init__(self) -> None:
        self.header_name = bytearray()
        self.header_value = bytearray()
        self.disposition = b""
        self.name = ""
        self.text = bytearray()
        self.file: BinaryIO | None = None


class _Writer:
    """Parses what it is fed; files go to disk at once, fields are bounded."""

    def __init__(self, content_type: str, directory: Path) -> None:
        self.form = Form()
        self._directory = directory
        self._part = _Part()
        self._parts = 0
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise RequestError("The content type of a form must give its boundary", code="invalid_form")
        self._parser = self._new_parser(boundary)

    def _new_parser(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    def feed(self, data: bytes) -> None:
        """Parse ``data``. Blocks on the disk: call it in a worker thread."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(error) from None

    def finish(self) -> None:
        """Check that the form is complete."""
        if not self._ended:
            raise RequestError("The form ends before its last boundary", code="invalid_form")

    def close(self) -> None:
        """Close the file that is being written, if one is."""
        if self._part.file is not None:
            self._part.file.close()
            self._part.file = None

    # Called by the parser.

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_UPLOAD_PARTS:
            raise RequestError(f"A form may have at most {MAX_UPLOAD_PARTS} parts", code="invalid_form")
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]
        self._bound_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]
        self._bound_header()

    def _bound_header(self) -> None:
        if len(self._part.header_name) + len(self._part.header_value) > MAX_PART_HEADER_BYTES:
            raise RequestError("A header in the form is too long", code="invalid_form")

    def _on_header_end(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            part.disposition = bytes(part.header_value)
        part.header_name.clear()
        part.header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        self._part.name = _text(options.get(b"name", b""), "a part's name")
        if b"filename" in options:
            path = self._directory / str(len(self.form.files))
            self.form.files.append((_text(options[b"filename"], "a file's name"), path))
            self.form.file_fields.append(self._part.name)
            self._part.file = path.open("xb")
        elif not self._part.name:
            raise RequestError("A part of the form has no name", code="invalid_form")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.file is not None:
            part.file.write(memoryview(data)[start:end])
            return
        part.text += data[start:end]
        if len(part.text) > MAX_UPLOAD_FIELD_BYTES:
            name = part.name[:100]
            raise RequestError(f"'{name}' is longer than {MAX_UPLOAD_FIELD_BYTES} bytes", name)

    def _on_part_end(self) -> None:
        part = self._part
        if part.file is None:
            self.form.fields.append((part.name, _text(bytes(part.text), f"'{part.name[:100]}'")))
        self.close()

    def _on_end(self) -> None:
        self._ended = True


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{what} is not valid UTF-8", code="invalid_form") from None


def _malformed(error: FormParserError) -> RequestError:
    return RequestError(f"The body is not a well-formed form: {error}", code="invalid_form")
