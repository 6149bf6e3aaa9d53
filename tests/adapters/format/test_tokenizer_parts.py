"""Tokenizers in files of older formats: vocabulary and merges, SentencePiece models, added tokens alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.conventions import AdapterText
from manylora.adapters.format.text.read_text import read_text
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.tokenizer_kinds import CONTROL, of_kind, tokenizer_of

KINDS = ["bytes", "byte-level BPE", "WordPiece", "SentencePiece BPE", "Unigram"]


def read(kind: str, files: dict[str, bytes]) -> AdapterText:
    faults = Faults()
    text = read_text(files, ChatTokenizer(of_kind(kind)).base_text(), None, faults)
    faults.raise_any()
    return text


def _field(number: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes([number << 3 | 2])
    while size > 0x7F:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + content


def _pieces_of(kind: str) -> list[tuple[str, float]]:
    vocab = json.loads(tokenizer_of(kind).to_str())["model"]["vocab"]
    return vocab if isinstance(vocab, list) else [(piece, 0.0) for piece in sorted(vocab, key=vocab.get)]


def _sentencepiece(pieces: list[tuple[str, float]], control: Sequence[str] = ()) -> bytes:
    """A SentencePiece model of those pieces behind ``control``, with fields that nobody asks for."""
    content = b"".join(_field(1, _field(1, piece.encode()) + b"\x18\x03") for piece in control)
    for piece, score in pieces:
        content += _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18\x01")
    return content + _field(2, b"\x08\x01") + _field(3, b"")


def older_files(kind: str, directory: Path) -> dict[str, bytes]:
    """The files that slow tokenizers of this kind were saved as."""
    backend = tokenizer_of(kind)
    if kind in ("SentencePiece BPE", "Unigram"):
        return {"tokenizer.model": _sentencepiece(_pieces_of(kind))}
    backend.model.save(str(directory))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_bases_vocabulary_is_the_bases(kind: str, mark: bytes, tmp_path: Path) -> None:
    files = older_files(kind, tmp_path)
    files = {
        name: content if name == "tokenizer.model" else mark + content for name, content in files.items()
    }
    assert read(kind, files).details()["tokenizer"] == "base"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SentencePiece BPE", "Unigram"])
@pytest.mark.parametrize("control", [(), ("<unk>",), ("<unk>", "<s>", "</s>"), ("<pad>", "</s>", "<unk>")])
def test_families_number_their_control_tokens_themselves(kind: str, control: tuple[str, ...]) -> None:
    ordinary = [piece for piece in _pieces_of(kind) if piece[0] not in {"<unk>", *CONTROL}]
    content = _sentencepiece(ordinary, control)
    assert read(kind, {"tokenizer.model": content}).details()["tokenizer"] == "base"
    for other in (ordinary[1:], ordinary[::-1], [*ordinary, ("zz", 0.0)]):
        with pytest.raises(ArtifactError, match="in another way than the base's"):
            read(kind, {"tokenizer.model": _sentencepiece(other, control)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [True, False])
def test_tokens_may_be_added(kind: str, alone: bool, tmp_path: Path) -> None:
    size = tokenizer_of(kind).get_vocab_size()
    files = {} if alone else older_files(kind, tmp_path)
    files["added_tokens.json"] = json.dumps({"<call>": size + 1, "hello": size}).encode()
    files["tokenizer_config.json"] = b'{"eos_token": "<call>"}'
    text = read(kind, files)
    made = Tokenizer(of_kind(kind)).with_text(text)
    whole = tokenizer_of(kind)
    whole.add_tokens(["hello"])
    whole.add_special_tokens(["<call>"])
    for each in ("a hello<call>", "<call><|im_end|>", "hello"):
        assert made.encode(each) == whole.encode(each).ids
    assert size + 1 in made.eos_ids
    assert text.top_id == size + 1


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_it_reads_as_transformers_does(texts: list[str]) -> None:
    model = json.loads(tokenizer_of("byte-level BPE").to_str())["model"]
    theirs = GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
    )
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""])
    files = {"vocab.json": json.dumps(model["vocab"]).encode(), "merges.txt": merges.encode()}
    ours = Tokenizer(of_kind("byte-level BPE")).with_text(read("byte-level BPE", files))
    for text in (*texts, "<|im_start|>".join(texts)):
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer.model": b"x"}, "can't be read as a vocabulary"),
        ({"tokenizer.model": b""}, "it has no pieces"),
        ({"tokenizer.model": b"\x0a\xff\xff\xff\xff\x0f"}, "it is cut off"),
        ({"vocab.json": b"{"}, "can't be read as a vocabulary"),
        ({"vocab.json": b"[]"}, "can't be read as a"),
        ({"vocab.json": b'{"a": 0}'}, r"reads text in another way than the base's \(model differ\)"),
        ({"vocab.json": b'{"a": -1}'}, "can't be read as a tokenizer"),
        ({"merges.txt": b"a"}, "can't be read as a"),
        ({"merges.txt": b"\xff"}, "can't be read as a vocabulary"),
        ({"vocab.txt": b"a\nb"}, "model differ"),
        ({"added_tokens.json": b"[]"}, "can't be read as a vocabulary"),
        ({"added_tokens.json": b'{"x": "y"}'}, "can't be read as a"),
        ({"added_tokens.json": b'{"x": 5000}'}, "an id that does not follow the vocabulary: x"),
        ({"added_tokens.json": b'{"a": 5}'}, "an id that does not follow the vocabulary: a"),
    ],
)
def test_files_that_are_refused(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        read("bytes", files)
