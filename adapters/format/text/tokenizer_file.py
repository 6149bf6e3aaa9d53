"""What a ``tokenizer.json`` does, as a small description.

Imports nothing of ours: tokenizers of strangers are described in a bounded process.
Building a stranger's tokenizer takes tenths of a second with the interpreter held, and anything can be in it.
:func:`describe` does it where that stops nobody, and returns what the server needs to know: digests of the
parts that decide how text is read, the added tokens, and what is put around a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

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
