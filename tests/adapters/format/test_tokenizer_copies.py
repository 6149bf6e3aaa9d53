"""Tokenizers that do the same are the same, however their files are written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.conventions import AdapterText, BaseText
from manylora.adapters.format.text.read_text import read_text
from manylora.adapters.format.text.tokenizer_file import describe
from manylora.server.model.text import tokenizer as served
from tests.support.tokenizer_kinds import KINDS, of_kind, tokenizer_of

FIELDS: dict[str, Any] = {
    "pad_token": "<|nowhere|>",
    "unk_token": "<|nowhere|>",
    "mask_token": {"content": "[MASK]", "lstrip": True},
    "padding_side": "left",
    "truncation_side": "left",
    "model_max_length": 7,
    "tokenizer_class": "LlamaTokenizerFast",
    "clean_up_tokenization_spaces": True,
    "additional_special_tokens": ["<a>", "<b>"],
    "extra_special_tokens": {"image": "<i>"},
    "added_tokens_decoder": {"0": {"content": "x"}},
    "unsloth_version": "2025",
}


def files_of(kind: str, **changes: Any) -> dict[str, bytes]:
    """What a trainer saves, with other fields in the tokenizer's config."""
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<pad>", **changes}
    return {
        "tokenizer.json": tokenizer_of(kind).to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def read(base: BaseText, files: dict[str, bytes]) -> AdapterText:
    faults = Faults()
    text = read_text(files, base, None, faults)
    faults.raise_any()
    return text


def base_of(kind: str) -> BaseText:
    return ChatTokenizer(of_kind(kind)).base_text()


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_change_nothing(kind: str) -> None:
    base = base_of(kind)
    for name, value in FIELDS.items():
        assert read(base, files_of(kind, **{name: value})).details()["tokenizer"] == "base", name
    assert read(base, files_of(kind, **FIELDS)).details()["tokenizer"] == "base"


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.sets(st.sampled_from(sorted(FIELDS))), st.sets(st.sampled_from(sorted(FIELDS))))
def test_two_tokenizers_of_an_adapter_are_one(first: set[str], second: set[str]) -> None:
    base = base_of("bytes")
    backend = tokenizer_of("bytes")
    backend.add_special_tokens(["<call>"])
    digests: set[str | None] = set()
    for names in (first, second):
        files = files_of("bytes", **{name: FIELDS[name] for name in names})
        files["tokenizer.json"] = backend.to_str(pretty=len(digests) == 1).encode()
        digests.add(read(base, files).tokenizer_digest)
    assert len(digests) == 1
    assert None not in digests


def _reordered(content: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(content.items(), reverse=True))


def _truncated(content: dict[str, Any]) -> dict[str, Any]:
    cut = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    return content | {"truncation": cut, "padding": pad | {"pad_type_id": 0, "pad_token": "[PAD]"}}


def _merged_as_texts(content: dict[str, Any]) -> dict[str, Any]:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return content | {"model": content["model"] | {"merges": merges, "unk_token": "!", "dropout": 0.0}}


def _wrapped_in_nothing(content: dict[str, Any]) -> dict[str, Any]:
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    nested = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}
    return content | {"post_processor": step, "decoder": step, "pre_tokenizer": nested}


@pytest.mark.parametrize("change", [_reordered, _truncated, _merged_as_texts, _wrapped_in_nothing])
def test_files_that_say_the_same(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    files = files_of("byte-level BPE")
    files["tokenizer.json"] = json.dumps(change(json.loads(files["tokenizer.json"])), indent=7).encode()
    assert read(base_of("byte-level BPE"), files).details()["tokenizer"] == "base"


@pytest.mark.parametrize("field", ["eos_token", "bos_token"])
def test_what_ends_an_answer_or_stands_in_a_template_counts(field: str) -> None:
    base = dataclasses.replace(base_of("bytes"), template="{{ bos_token }}{{ messages }}")
    text = read(base, files_of("bytes", **{field: "<pad>"}))
    assert text.special is not None
    assert text.special[field] == "<pad>"
    assert text.tokenizer_digest is not None
    with pytest.raises(ArtifactError, match=f"{field} '<none>' is not a token"):
        read(base, files_of("bytes", **{field: "<none>"}))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"])
def test_a_byte_order_mark_is_no_content(name: str) -> None:
    files = files_of("bytes") | {"special_tokens_map.json": b"{}"}
    files[name] = b"\xef\xbb\xbf" + files[name]
    assert read(base_of("bytes"), files).details()["tokenizer"] == "base"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_what_is_served_is_what_the_file_says(kind: str, texts: list[str]) -> None:
    """The tokenizer that shares the base's model equals the one that is built from the whole file."""
    backend = tokenizer_of(kind)
    backend.add_special_tokens([AddedToken("<call>", lstrip=True, rstrip=True)])
    backend.add_tokens(["hello", AddedToken("wörd", single_word=True)])
    base = ChatTokenizer(of_kind(kind))
    text = read(base.base_text(), files_of(kind) | {"tokenizer.json": backend.to_str().encode()})
    made = served.Tokenizer(of_kind(kind)).with_text(text)
    whole = Tokenizer.from_str(backend.to_str())
    for each in (*texts, " <call> ".join(texts), "hello wörd<|im_end|>".join(texts)):
        for special in (True, False):
            ids = whole.encode(each, add_special_tokens=special).ids
            assert made.encode(each, add_special_tokens=special) == ids
        assert made.decode(ids) == whole.decode(ids)
    assert text.tokenizer is not None
    again = json.loads(Tokenizer.from_str(text.tokenizer.to_json(base.base_text())).to_str())
    assert describe(json.dumps(again))["added"] == describe(backend.to_str())["added"]
    assert made.vocab_size == whole.get_vocab_size()


@pytest.mark.slow
def test_a_file_that_takes_too_long_or_too_much_loses_its_own_load(tmp_path: Path) -> None:
    bomb = json.loads(tokenizer_of("bytes").to_str())
    bomb["added_tokens"] += [
        {"id": 259 + i, "content": f"<{i}>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i in range(70_000)
    ]
    with pytest.raises(ArtifactError, match="adds 70000 tokens; the limit is 65536"):
        read(base_of("bytes"), {"tokenizer.json": json.dumps(bomb).encode()})
    deep = b"[" * 500_000
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not valid JSON"):
        read(base_of("bytes"), {"tokenizer.json": deep})
