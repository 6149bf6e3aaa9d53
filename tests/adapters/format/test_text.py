"""Templates and tokenizers that come with an adapter: what counts as the base's, and every fault."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.base import BaseModel, BaseVocabulary
from manylora.adapters.format.text.read_text import MAX_TEMPLATE
from manylora.adapters.store.store import RevisionStore
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.adapters import write_artifact
from tests.support.artifact_cases import BASE, LIMITS, valid
from tests.support.publishing import add_revision
from tests.support.tiny_models import VOCAB, byte_tokenizer

TABLES = BaseVocabulary("model.embed_tokens", "lm_head", VOCAB, 8, 8, tied=True)
OWN = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return dataclasses.replace(BASE, vocabulary=TABLES, text=Tokenizer(byte_tokenizer()).base_text())


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "adapter", *valid())


def load(adapter: Path, base: BaseModel) -> Artifact:
    return read_artifact(adapter, base, LIMITS)


def save(adapter: Path, **changes: Any) -> PreTrainedTokenizerFast:
    """Save the base's tokenizer, with changes, as a trainer would."""
    tokenizer = byte_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(adapter)
    return tokenizer


def edit(adapter: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Save the base's tokenizer and change its ``tokenizer.json``."""
    save(adapter)
    path = adapter / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def faults(adapter: Path, base: BaseModel) -> tuple[str, ...]:
    with pytest.raises(ArtifactError) as error:
        load(adapter, base)
    return error.value.faults


def test_without_files_the_base_speaks(adapter: Path, base: BaseModel) -> None:
    text = load(adapter, base).text
    assert text.details() == {"chat_template": "base", "tokenizer": "base", "format": "base"}


def test_copies_of_the_bases_files_are_the_bases(adapter: Path, base: BaseModel) -> None:
    """Also with the settings of a training run in them."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.save_pretrained(adapter)
    assert (adapter / "chat_template.jinja").exists()
    assert load(adapter, base).text.details() == {
        "chat_template": "base",
        "tokenizer": "base",
        "format": "base",
    }


def test_a_template_of_its_own(adapter: Path, base: BaseModel) -> None:
    (adapter / "chat_template.jinja").write_text(OWN)
    text = load(adapter, base).text
    assert text.template == OWN
    assert text.details() == {
        "chat_template": f"adapter:{text.template_digest}",
        "tokenizer": "base",
        "format": {"source": "none", "calls": None, "reasoning": None},
    }


@pytest.mark.parametrize(
    "value", [OWN, [{"name": "other", "template": "x"}, {"name": "default", "template": OWN}]]
)
def test_a_template_in_the_tokenizers_config(adapter: Path, base: BaseModel, value: object) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert load(adapter, base).text.template == OWN
    (adapter / "chat_template.jinja").write_text("the file counts")
    assert load(adapter, base).text.template == "the file counts"


def test_tokens_may_be_added(adapter: Path, base: BaseModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<call>", special=True), "hello"])
    tokenizer.eos_token = "<call>"
    tokenizer.save_pretrained(adapter)
    text = load(adapter, base).text
    assert text.top_id == 260
    assert text.details()["tokenizer"] == f"adapter:{text.tokenizer_digest}"
    made = Tokenizer(byte_tokenizer()).with_text(text)
    assert made.encode("a<call>hello") == [*made.encode("a"), 259, 260]
    assert made.eos_ids == {258, 259}
    assert made.vocab_size == 261
    assert made.render_chat([{"role": "user", "content": "x"}]).startswith("<|im_start|>user")


def test_another_end_token(adapter: Path, base: BaseModel) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    text = load(adapter, base).text
    assert text.tokenizer is None
    assert text.special == {"bos_token": "<|im_start|>", "eos_token": "<pad>", "pad_token": "<pad>"}
    assert 256 in Tokenizer(byte_tokenizer()).with_text(text).eos_ids


def _regex(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def _swap(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def _rename(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["content"] = "<other>"


def _wrapper(content: dict[str, Any]) -> None:
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"x": {"id": "x", "ids": [99_999], "tokens": ["x"]}},
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_regex, "reads text in another way than the base's .*pre_tokenizer differ"),
        (_swap, "model differ"),
        (_rename, "lacks tokens of the base.*'<pad>'"),
        (_wrapper, "id 99999, but the embeddings have 288 rows"),
        (lambda c: c["model"].update(vocab={"a": "b"}), "can't be read as a tokenizer"),
        (lambda c: c.clear(), "can't be read as a tokenizer"),
    ],
)
def test_a_tokenizer_that_is_refused(
    adapter: Path, base: BaseModel, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit(adapter, change)
    found = faults(adapter, base)
    assert any(re.search(reason, fault) for fault in found), found


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not valid JSON"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not valid UTF-8"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json must hold a JSON object"),
        (
            "tokenizer_config.json",
            b'{"eos_token": 5}',
            "eos_token in tokenizer_config.json is not a token: 5",
        ),
        ("tokenizer_config.json", b'{"eos_token": "nowhere"}', "eos_token 'nowhere' is not a token"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template in .* is not a text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "x"}]}', "no template named 'default'"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not valid UTF-8"),
        ("chat_template.jinja", b"{% for %}", "not valid Jinja: Expected"),
        ("chat_template.jinja", b"{{" + b"(" * 9000 + b")" * 9000 + b"}}", "nested too deeply"),
        ("chat_template.jinja", b"x" * (MAX_TEMPLATE + 1), "131,073 characters; the limit is 131,072"),
        ("tokenizer.model", b"x", "'tokenizer.model' without tokenizer.json"),
    ],
)
def test_files_that_are_refused(
    adapter: Path, base: BaseModel, name: str, content: bytes, reason: str
) -> None:
    (adapter / name).write_bytes(content)
    assert any(re.search(reason, fault) for fault in faults(adapter, base))


def test_nothing_of_a_template_is_evaluated_when_it_is_checked(adapter: Path, base: BaseModel) -> None:
    bomb = "{{ 'a' * (10 ** 12) }}{% for i in range(10 ** 9) %}{% endfor %}"
    (adapter / "chat_template.jinja").write_text(bomb)
    assert load(adapter, base).text.template == bomb


def test_faults_are_reported_together(tmp_path: Path, base: BaseModel) -> None:
    config, tensors = valid()
    tensors.pop(next(iter(tensors)))
    adapter = write_artifact(tmp_path / "adapter", config | {"use_qalora": True}, tensors)
    (adapter / "chat_template.jinja").write_text("{% for %}")
    (adapter / "tokenizer.json").write_text("{}")
    found = "; ".join(faults(adapter, base))
    for part in ("use_qalora", "missing tensors", "not valid Jinja", "can't be read as a tokenizer"):
        assert part in found


def test_the_digest_covers_the_files_and_the_store_keeps_them(
    adapter: Path, base: BaseModel, tmp_path: Path
) -> None:
    bare = load(adapter, base).digest
    (adapter / "chat_template.jinja").write_text(OWN)
    (adapter / "README.md").write_text("not kept")
    digest = load(adapter, base).digest
    assert digest != bare
    with RevisionStore(tmp_path / "store") as store:
        stored, path = add_revision(store, adapter)
    assert stored == digest
    assert load(path, base).digest == digest
    assert load(path, base).text.template == OWN
    assert not (path / "README.md").exists()


def test_a_base_described_without_tokenizer_takes_no_text(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text(OWN)
    assert "the base was described without its tokenizer" in faults(adapter, BASE)[0]
