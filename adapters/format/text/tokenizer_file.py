"""What a ``tokenizer.json`` does, as a small description.

Imports nothing of ours: tokenizers of strangers are described in a bounded process.
Building a stranger's tokenizer takes tenths of a second with the interpreter held, and anything can be in it.
:func:`describe` does it where that stops nobody, and returns what the server needs to know: digests of the
parts that decide how text is read, the added tokens, and what is put around a text.
"""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer

_CONTROL: Final = (b"\x02", b"\x03")  # SentencePiece's types UNKNOWN and CONTROL
SECTIONS = ("normalizer", "pre_tokenizer", "model", "decoder")  # of tokenizer.json: how text is read


def describe(content: str) -> dict[str, Any]:
    """The description of ``tokenizer.json``; ``{"fault", "reason"}`` where it is none.

    The library gives added tokens the ids that follow the vocabulary, whatever the file says.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        return {"fault": "is not valid JSON", "reason": str(error)}
    if not isinstance(parsed, dict):
        return {"fault": "must hold a JSON object", "reason": f"not a {type(parsed).__name__}"}
    try:
        return description(json.loads(Tokenizer.from_str(content).to_str()))
    except BaseException as error:  # the library's own panics derive from that
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        return {"fault": "can't be read as a tokenizer", "reason": str(error)}


def describe_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a tokenizer that is kept in the files of older formats.

    They hold its vocabulary and its added tokens; all else is the base's.

    Args:
        parts: ``base``: the base's ``tokenizer.json``; ``files``: the others by name, as base64; ``special``:
            the texts of special tokens.
    """
    base = json.loads(parts["base"])
    files = {name: b64decode(content) for name, content in parts["files"].items()}
    try:
        model = base["model"] | _vocabulary(files, base)
        given = json.loads(files.get("added_tokens.json", b"{}"))
        added = base["added_tokens"] + _new_tokens(given, base["added_tokens"], parts["special"])
        found = describe(json.dumps(base | {"model": model, "added_tokens": added}))
    except Exception as error:  # it reads what a stranger wrote: it raises anything
        return {"fault": "can't be read as a vocabulary", "reason": f"{type(error).__name__}: {error}"}
    ids = {token["content"]: token["id"] for token in found.get("added", ())}
    wrong = [content for content, token_id in given.items() if ids.get(content, token_id) != token_id]
    if wrong:
        return {"fault": "gives a token an id that does not follow the vocabulary", "reason": wrong[0]}
    return found


def _vocabulary(files: Mapping[str, bytes], base: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the model of ``base``, a ``tokenizer.json``, that the files hold."""
    found: dict[str, Any] = {}
    if "vocab.json" in files:
        found["vocab"] = json.loads(files["vocab.json"])
    if "merges.txt" in files:
        lines = files["merges.txt"].decode().split("\n")
        found["merges"] = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if "vocab.txt" in files:
        lines = files["vocab.txt"].decode().removesuffix("\n").split("\n")
        found["vocab"] = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if "tokenizer.model" in files:
        found["vocab"] = _arranged(_pieces(files["tokenizer.model"]), base)
    return found


def _arranged(pieces: list[_Piece], base: Mapping[str, Any]) -> Any:
    """The vocabulary of a SentencePiece model, as that of ``base``, a ``tokenizer.json``, is written.

    Some families number the pieces anew when they are converted: they put control tokens of their own before
    and behind them (XLM-R, T5). So pieces between which and the ends the base has added tokens only are where
    they are there.
    """
    vocab, unigram = base["model"]["vocab"], base["model"]["type"] == "Unigram"
    known = vocab if unigram else sorted(vocab, key=vocab.get)
    names = [entry[0] for entry in known] if unigram else known
    text = [piece for piece in pieces if not piece.is_control]
    start = names.index(text[0].text) if text and text[0].text in names else len(names)
    end = start + len(text)
    own = {token["content"] for token in base["added_tokens"]}.issuperset([*names[:start], *names[end:]])
    if own and names[start:end] == [piece.text for piece in text]:
        return [*known[:start], *([p.text, p.score] for p in text), *known[end:]] if unigram else vocab
    if unigram:
        return [[piece.text, piece.score] for piece in pieces]
    return {piece.text: number for number, piece in enumerate(pieces)}


def _new_tokens(
    given: Mapping[str, int], known: Iterable[Mapping[str, Any]], special: Iterable[str]
) -> list[dict[str, Any]]:
    """Tokens of ``added_tokens.json`` that are not ``known``, with the flags that transformers gives them."""
    have, flagged = {token["content"] for token in known}, {*special}
    return [
        {
            "id": token_id,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": content not in flagged,
            "special": content in flagged,
        }
        for content, token_id in sorted(given.items(), key=lambda item: item[1])
        if content not in have
    ]


class _Piece(NamedTuple):
    """One piece of a SentencePiece model."""

    text: str
    score: float
    is_control: bool  # it stands for no text: <s>, <unk>, ...


def _pieces(content: bytes) -> list[_Piece]:
    """The pieces of a SentencePiece model (its ``ModelProto``), in the order of ids."""
    pieces = []
    for number, value in _fields(content):
        if number == 1:
            fields = dict(_fields(value))
            score: float = struct.unpack("<f", fields.get(2, bytes(4)))[0]
            pieces.append(_Piece(fields[1].decode(), score, fields.get(3) in _CONTROL))
    if not pieces:
        raise ValueError("it has no pieces")
    return pieces


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol buffer by number, as they are encoded."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            _, end = _varint(content, at)
            size = end - at
        elif kind == 2:
            size, at = _varint(content, at)
        else:
            size = {1: 8, 5: 4}[kind]
        if at + size > len(content):
            raise ValueError("it is cut off")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def description(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a tokenizer as the library writes it."""
    sections = {name: _digest(_canonical(name, tokenizer)) for name in SECTIONS}
    before, after = _around(tokenizer.get("post_processor"))
    return {
        "sections": sections,
        "added": sorted(tokenizer["added_tokens"], key=lambda token: int(token["id"])),
        "before": before,
        "after": after,
        "post_processor": tokenizer.get("post_processor"),
        "ids": _ranges(_vocabulary_ids(tokenizer["model"])),
    }


def _canonical(name: str, tokenizer: Mapping[str, Any]) -> Any:
    """A part without what changes no id and no text."""
    part = tokenizer.get(name)
    if name == "model":
        return _model(tokenizer["model"], tokenizer)
    if name == "pre_tokenizer":
        return _sequence(part, "pretokenizers", ("trim_offsets",))
    if name == "normalizer":
        return _sequence(part, "normalizers", ())
    return _sequence(part, "decoders", ("trim_offsets", "add_prefix_space", "use_regex"))


def _sequence(part: Any, key: str, idle: Iterable[str]) -> list[Any]:
    """The steps of a part in order; ``idle``: fields of ByteLevel that mean nothing in it."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for each in part[key] for step in _sequence(each, key, idle)]
    if part.get("type") == "ByteLevel":
        return [{name: value for name, value in part.items() if name not in idle}]
    return [part]


def _model(model: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Any:
    if model.get("type") == "Unigram":  # SentencePiece keeps the scores as float32
        rounded = [
            [piece, struct.unpack("<f", struct.pack("<f", score))[0]] for piece, score in model["vocab"]
        ]
        return {**model, "vocab": rounded}
    if model.get("type") != "BPE":
        return model
    result = {name: value for name, value in model.items() if value not in (None, "", 0, False)}
    steps = _sequence(tokenizer.get("pre_tokenizer"), "pretokenizers", ())
    if any(step.get("type") == "ByteLevel" for step in steps) and len(model["vocab"]) >= 256:
        for name in ("unk_token", "fuse_unk"):  # it knows every byte
            result.pop(name, None)
    return result


def _around(part: Any) -> tuple[list[int], list[int]]:
    """The ids that are put before and after a text."""
    kind = None if part is None else part.get("type")
    if kind == "Sequence":
        found = [_around(each) for each in part["processors"]]
        return [i for before, _ in reversed(found) for i in before], [i for _, after in found for i in after]
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [part["cls"][1]], [part["sep"][1]]
    if kind != "TemplateProcessing":
        return [], []
    before: list[int] = []
    after: list[int] = []
    target = before
    for piece in part["single"]:
        if "Sequence" in piece:
            target = after
        else:
            target += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return before, after


def _vocabulary_ids(model: Mapping[str, Any]) -> list[int]:
    vocabulary = model.get("vocab", ())
    return sorted(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))


def _ranges(ids: list[int]) -> list[list[int]]:
    """Sorted ids as ranges, the ends excluded."""
    ranges: list[list[int]] = []
    for token_id in ids:
        if ranges and ranges[-1][1] == token_id:
            ranges[-1][1] += 1
        else:
            ranges.append([token_id, token_id + 1])
    return ranges


def _digest(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
