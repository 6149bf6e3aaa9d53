"""Files of every kind give the same rows, and every fault names file, line and key."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from manylora.adapters.training.data.rows import ChatRow
from manylora.adapters.training.errors import DataError
from tests.support.training_data import prepared

ROWS = [
    {"instruction": f"Say {n}.", "input": "" if n % 2 else f"loud,\n{n}", "output": f'"{n}"; ü🦊'}
    for n in range(7)
]


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def separated(rows: list[Any], mark: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def columns(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow(rows: list[Any]) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


KINDS: dict[str, Callable[[list[Any]], bytes]] = {
    "d.jsonl": json_lines,
    "d.ndjson": json_lines,
    "d": json_lines,
    "d.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "lines.json": json_lines,
    "bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "object.json": lambda rows: json.dumps({"version": "1", "data": rows}, indent=2).encode(),
    "other.json": lambda rows: json.dumps({"n": 7, "my rows": rows, "tags": ["a"]}).encode(),
    "d.csv": lambda rows: separated(rows, ","),
    "semicolon.csv": lambda rows: separated(rows, ";"),
    "excel.csv": lambda rows: b"\xef\xbb\xbf" + separated(rows, ","),
    "d.tsv": lambda rows: separated(rows, "\t"),
    "d.parquet": columns,
    "unnamed": columns,
    "d.arrow": arrow,
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_rows(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKED[suffix](KINDS[name](ROWS)))
    rows = prepared(path).train.rows
    questions = [f"{r['instruction']}\n\n{r['input']}" if r["input"] else r["instruction"] for r in ROWS]
    assert [row.messages[0]["content"] for row in rows if isinstance(row, ChatRow)] == questions
    assert [row.messages[1]["content"] for row in rows if isinstance(row, ChatRow)] == [
        r["output"] for r in ROWS
    ]


def faults(path: Path, **options: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        prepared(path, **options)
    return str(caught.value).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("bad", range(1, 7))
@pytest.mark.parametrize("name", KINDS)
def test_a_fault_has_its_line_and_key(name: str, bad: int, tmp_path: Path) -> None:
    rows = [row | {"output": ""} if n == bad else row for n, row in enumerate(ROWS)]
    path = tmp_path / name
    path.write_bytes(KINDS[name](rows))
    (fault,) = faults(path)
    where, line, key, _ = fault.split(":", 3)
    assert (where, key.strip()) == (str(path), "output")
    if name not in ("d.parquet", "unnamed", "d.arrow"):
        text = path.read_text("utf-8-sig").splitlines()
        assert f"Say {bad}." in "\n".join(text[int(line) - 1 : int(line) + 3])
    else:
        assert int(line) == bad + 1
    data = prepared(path, skip_bad_rows=1)
    assert len(data.train.rows) == 6
    skipped, count = [w.message for w in data.warnings][-2:]
    assert skipped.startswith("skipped: output: is empty: write the text or remove the row")
    assert count == "1 rows with faults skipped (--skip-bad-rows 1)"


def test_more_bad_rows_than_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json_lines([*ROWS, {"instruction": "a", "output": 1}, {"messages": []}, 4]) + b"{\n")
    said = faults(path, skip_bad_rows=3)
    assert [line.removeprefix(f"{path}:").partition(":")[0] for line in said[:4]] == ["8", "9", "10", "11"]
    assert said[-1] == "4 rows have faults, more than --skip-bad-rows 3"
    assert len(prepared(path, skip_bad_rows=4).train.rows) == 7


UNPACKED = "and can't be unpacked"
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "truncated gzip": ("d.jsonl.gz", gzip.compress(json_lines(ROWS))[:-9], f"compressed (gzip) {UNPACKED}"),
    "truncated bzip2": ("d.jsonl.bz2", bz2.compress(json_lines(ROWS))[:-9], "is compressed (bzip2)"),
    "truncated xz": ("d.jsonl.xz", lzma.compress(json_lines(ROWS))[:-9], "is compressed (xz)"),
    "truncated zstd": ("d.jsonl.zst", zstd(json_lines(ROWS))[:-9], "is compressed (zstd)"),
    "truncated Parquet": ("d.parquet", columns(ROWS)[:-9], "can't be read as Parquet"),
    "no Parquet": ("d.parquet", b"hello", "can't be read as Arrow"),
    "Parquet without rows": ("d.parquet", columns(ROWS)[:4], "can't be read as Parquet"),
    "array cut off": ("d.json", json.dumps(ROWS).encode()[:-9], "is not JSON"),
    "no array": ("d.json", b"4", "is a number, not a list of rows"),
    "empty array": ("d.json", b"[]", "has no rows"),
    "no rows in the object": ("d.json", b'{"a": 1, "b": []}', "none of its keys hold a list of rows (a, b)"),
    "several lists": ("d.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "several of its keys"),
    "a list as a row": ("d.json", b'[{"text": "x"},\n\n[1]]', ":3: is an array, not an object"),
    "key twice in an array": ("d.json", b'[{"text": "x"},\n{"text": "x", "text": "y"}]', ":2: is not a row"),
    "after the object": ("d.json", b'{"text": "x"\n} 4', "Extra data"),
    "cells": ("d.csv", b"instruction,output\na,b\na,b,c\n", ":3: has 3 cells where the header has 2"),
    "column twice": ("d.csv", b"output,output\na,b\n", ":1: the header has the column 'output' twice"),
    "open quote": ("d.csv", b'instruction,output\na,b\nc,"d\n', "is not CSV"),
    "Latin-1": ("d.csv", "instruction,output\na,b\nc,é\n".encode("latin-1"), ":3: is not UTF-8"),
    "zip": ("d.zip", b"PK\x03\x04", "is compressed (zip)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_can_not_be_read(name: str, tmp_path: Path) -> None:
    file, content, message = BROKEN[name]
    (tmp_path / file).write_bytes(content)
    said = faults(tmp_path / file)
    assert said[0].startswith(str(tmp_path / file))
    assert message in said[0]


LONE = "\\ud83d"
TURN = '{"role": "assistant", "content": "x%s"}'
SURROGATES = {
    '{"instruction": "a%s", "output": "b"}': "instruction",
    '{"instruction": "a", "output": "%s"}': "output",
    f'{{"messages": [{{"role": "user", "content": "a"}}, {TURN}]}}': "messages[1].content",
    '{"conversations": [{"from": "gpt", "value": "%sa"}]}': "conversations[0].value",
    '{"prompt": "%s", "completion": "b"}': "prompt",
    '{"text": "a", "meta": {"k": ["%s"]}}': "meta.k[0]",
    '{"messages": [{"content": [{"type": "text", "text": "%s"}]}]}': "messages[0].content[0].text",
}


@pytest.mark.parametrize("row", SURROGATES)
@pytest.mark.parametrize("half", [LONE, "\\udc00", f"{LONE}{LONE}", f"\\udc00{LONE}"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.jsonl.gz"])
def test_half_characters_are_told_with_their_key(name: str, half: str, row: str, tmp_path: Path) -> None:
    whole = row % "\\ud83e\\udd8a"
    text = f"{whole}\n{row % half}\n" if "jsonl" in name else f"[{whole},\n{row % half}]"
    content = text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    said = faults(path)
    fault = next(line for line in said if "half a character" in line)
    assert fault.startswith(f"{path}:2: ")
    assert f" {SURROGATES[row]}: has half a character" in fault


def test_half_characters_in_the_json_inside_of_a_text(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": '{"a": "\\ud83d"}'}}
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]}
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    assert "messages[1].tool_calls[0].function.arguments: is not JSON" in faults(path)[0]


@pytest.mark.slow
@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_bytes_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("d.jsonl", "d.json", "d.csv", "d.parquet", "d.jsonl.gz"):
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            prepared(folder / name)
