"""Forms with files: parsed piece by piece, written to disk as they come, bounded in every direction."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.server.api.http.limits import MAX_UPLOAD_PARTS
from manylora.server.api.http.multipart import Form, is_multipart, receive_form
from manylora.server.errors import RequestError

KIND = "multipart/form-data; boundary=xyz"


def part(disposition: str, content: bytes) -> bytes:
    return (
        b"--xyz\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
    )


END = b"--xyz--\r\n"
WHOLE = part('name="files"; filename="a/b.json"', b"{}") + part('name="tags"', b"x") + END


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def receive(body: bytes, directory: Path, kind: str = KIND, size: int = 1 << 16, **options: int) -> Form:
    return asyncio.run(receive_form(pieces(body, size), kind, directory, **options))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_any_cut_gives_the_same_form(tmp_path: Path, size: int) -> None:
    form = receive(WHOLE, tmp_path, size=size, batch_bytes=1)  # every piece goes to the parser by itself
    assert form.fields == [("tags", "x")]
    ((name, path),) = form.files
    assert name == "a/b.json"  # told, not used
    assert path == tmp_path / "0"
    assert path.read_bytes() == b"{}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), size=st.integers(1, 100))
def test_contents_arrive_unchanged(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, size: int
) -> None:
    directory = tmp_path_factory.mktemp("form")
    boundary = os.urandom(16).hex().encode()
    body = part('name="f"; filename="f"', content).replace(b"--xyz", b"--" + boundary, 1)
    form = receive(
        body + b"--" + boundary + b"--\r\n",
        directory,
        f"multipart/form-data; boundary={boundary.decode()}",
        size,
    )
    assert form.files[0][1].read_bytes() == content


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "before its last boundary"),
        (b"garbage", "not a well-formed form"),
        (WHOLE[:-9], "before its last boundary"),
        (WHOLE[:70], "before its last boundary"),
        (b"--xyz\r\n: x\r\n\r\n", "not a well-formed form"),
        (b"--xyz\r\n\r\nx\r\n" + END, "has no name"),
        (part("x=1", b"") + END, "has no name"),
        (part('name="tags"', b"x" * 4097) + END, "'tags' is longer than 4096 bytes"),
        (part('name="tags"', b"\xff") + END, "not valid UTF-8"),
        (part('name="f"; filename="\xff"', b"").replace(b"\xc3\xbf", b"\xff") + END, "not valid UTF-8"),
        (b"--xyz\r\nX: " + b"x" * 2000 + b"\r\n\r\n" + END, "header in the form is too long"),
        (b"--xyz\r\n" + b"x" * 2000 + b": \r\n\r\n" + END, "header in the form is too long"),
        (part('name="t"', b"") * (MAX_UPLOAD_PARTS + 1) + END, "at most 64 parts"),
    ],
)
def test_bad_forms(tmp_path: Path, body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        receive(body, tmp_path)
    assert caught.value.param is not None or caught.value.code == "invalid_form"


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'x' * 999}"],
)
def test_bad_boundaries(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RequestError) as caught:
        receive(WHOLE, tmp_path, kind)
    assert caught.value.code == "invalid_form"


def test_kinds() -> None:
    assert is_multipart("Multipart/Form-Data; boundary=x")
    assert not is_multipart("application/json")
    assert not is_multipart("")
