"""Packed bodies: whatever was packed, however it is cut, comes out as it was; bombs and wrong data do not."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from manylora.server.api.http.limits import MAX_BODY_BYTES
from manylora.server.api.http.unpacking import PIECE, unpacked, unpackers
from manylora.server.errors import BodyTooLarge, RequestError
from tests.support.running_server import Running

LIMIT = 1 << 30


def _brotli(data: bytes) -> bytes:
    packed: bytes = importlib.import_module("brotli").compress(data)
    return packed


def _zstd(data: bytes) -> bytes:
    names = ["compression.zstd", "backports.zstd"]
    found = next(module for name in names if (module := _try(name)) is not None)
    packed: bytes = found.compress(data)
    return packed


def _try(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "br": _brotli,
    "zstd": _zstd,
}
ENCODINGS = sorted(PACKERS.keys() & unpackers().keys())
SERIAL = [name for name in ENCODINGS if name != "br"]  # whose streams may follow each other


def _unpack(encoding: str, parts: Sequence[bytes], limit: int = LIMIT) -> bytes:
    """What a route would read of a body that comes in these parts."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    async def read() -> bytes:
        content = b""
        async for message in unpacked(receive, unpackers()[encoding](), limit):
            assert len(message["body"]) <= 2 * PIECE
            content += message["body"]
        assert not message["more_body"]
        return content

    return asyncio.run(read())


def _cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


# What a content repeats, and how often.
CONTENTS = st.tuples(st.binary(max_size=2000), st.just(1)) | st.tuples(
    st.binary(min_size=1, max_size=3), st.integers(0, 5 * PIECE)
)
CUTS = st.lists(st.integers(0, 10**6), max_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(deadline=None)
@given(content=CONTENTS, cuts=CUTS)
def test_what_was_packed_comes_out(encoding: str, content: tuple[bytes, int], cuts: list[int]) -> None:
    unit, count = content
    assert _unpack(encoding, _cut(PACKERS[encoding](unit * count), cuts)) == unit * count


@pytest.mark.parametrize("encoding", SERIAL)
@settings(deadline=None, max_examples=30)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=3), cuts=CUTS)
def test_streams_that_follow_each_other(
    encoding: str, contents: list[tuple[bytes, int]], cuts: list[int]
) -> None:
    whole = [unit * count for unit, count in contents]
    packed = b"".join(map(PACKERS[encoding], whole))
    assert _unpack(encoding, _cut(packed, cuts)) == b"".join(whole)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=500), end=st.integers(1, 10**6), cuts=CUTS)
def test_what_ends_too_early_is_refused(encoding: str, content: bytes, end: int, cuts: list[int]) -> None:
    packed = PACKERS[encoding](content)
    with pytest.raises(RequestError, match="Content-Encoding"):
        _unpack(encoding, _cut(packed[: 1 + end % (len(packed) - 1)], cuts))


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=500), garbage=st.binary(min_size=4, max_size=20))
def test_what_goes_on_too_long_is_refused(encoding: str, content: bytes, garbage: bytes) -> None:
    packed = PACKERS[encoding](content)
    with pytest.raises(RequestError, match="Content-Encoding"):
        _unpack(encoding, [packed + b"\xff" + garbage])


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(deadline=None)
@given(data=st.binary(min_size=1, max_size=200), cuts=CUTS)
def test_anything_else_is_refused_as_the_request_s_fault(encoding: str, data: bytes, cuts: list[int]) -> None:
    """Whatever it is: no other exception comes out."""
    with suppress(RequestError):
        _unpack(encoding, _cut(data, cuts))


@pytest.mark.parametrize("encoding", SERIAL)
def test_packed_bytes_that_unpack_to_nothing_are_bounded(encoding: str) -> None:
    with pytest.raises(BodyTooLarge):
        _unpack(encoding, [PACKERS[encoding](b"")] * 1000, limit=5000)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bodies_of_a_server(server: Running, encoding: str) -> None:
    body = json.dumps({"model": "tiny", "prompt": "Hello"}).encode()
    with server.http(headers={"content-encoding": encoding}) as http:
        plain = httpx.post(f"{server.url}/tokenize", content=body)
        answer = http.post("/tokenize", content=PACKERS[encoding](body))
        assert answer.json() == plain.json()
        assert answer.status_code == 200
        bomb = PACKERS[encoding](b" " * (64 * MAX_BODY_BYTES))
        for content in (bomb, iter([bomb])):
            refused = http.post("/tokenize", content=content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        wrong = http.post("/tokenize", content=body)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_encoding")


@pytest.mark.parametrize(
    "encoding", ["deflate", "gzip, gzip", "gzip,br", "compress", "*", "utf-8", "g\u00e9zip", "x" * 9000]
)
def test_encodings_that_are_not_known(server: Running, encoding: str) -> None:
    header = encoding.encode("latin-1")
    for content in (zlib.compress(b"{}"), b"{}"):
        answer = httpx.post(
            f"{server.url}/tokenize", content=content, headers=[(b"content-encoding", header)]
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unknown_encoding")
        assert "gzip" in answer.headers["accept-encoding"]
        assert len(answer.text) < 500


@pytest.mark.parametrize("encoding", ["", "identity", "Identity, identity"])
def test_bodies_that_are_not_packed(server: Running, encoding: str) -> None:
    body = {"model": "tiny", "prompt": "Hello"}
    answer = httpx.post(f"{server.url}/tokenize", json=body, headers={"content-encoding": encoding})
    assert answer.status_code == 200


def test_names_of_encodings_have_no_case(server: Running) -> None:
    body = gzip.compress(json.dumps({"model": "tiny", "prompt": "Hello"}).encode())
    answer = httpx.post(f"{server.url}/tokenize", content=body, headers={"content-encoding": "GZip"})
    assert answer.status_code == 200


def test_an_upload_may_be_packed(server: Running, adapters: Any) -> None:
    """An upload has a bound of its own, also for what it unpacks to."""
    files = [("files", (path.name, path.read_bytes())) for path in sorted((adapters / "alpha").iterdir())]
    request = httpx.Request("PUT", f"{server.url}/v1/adapters/packed?wait=true", files=files)
    headers = {"content-type": request.headers["content-type"], "content-encoding": "gzip"}
    with server.http() as http:
        answer = http.put(request.url, content=gzip.compress(request.read()), headers=headers)
        assert answer.status_code == 201, answer.text
        assert http.delete("/v1/adapters/packed").status_code == 200
