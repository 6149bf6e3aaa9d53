"""Text, tokens and conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from manylora.server.errors import ModelRefused, RequestError
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())
BOS, EOS = 257, 258
HELLO = [{"role": "user", "content": "hi"}]


def with_template(template: str | None, **changes: Any) -> Tokenizer:
    hf = byte_tokenizer()
    hf.chat_template = template
    for name, value in changes.items():
        setattr(hf, name, value)
    return Tokenizer(hf)


@given(st.text())
def test_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= token < TOKENIZER.vocab_size for token in ids)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text: str) -> None:
    joined = b"".join(map(TOKENIZER.token_bytes, TOKENIZER.encode(text)))
    assert joined == text.encode()


def test_tokens_that_are_parts_of_characters() -> None:
    ids = TOKENIZER.encode("é")
    assert [TOKENIZER.token_bytes(t) for t in ids] == [b"\xc3", b"\xa9"]
    assert [TOKENIZER.token_text(t) for t in ids] == ["\ufffd", "\ufffd"]
    assert TOKENIZER.decode(ids) == "é"


def test_special_tokens() -> None:
    assert TOKENIZER.encode("a<|im_end|>") == [*TOKENIZER.encode("a"), EOS]
    assert TOKENIZER.token_text(EOS) == "<|im_end|>"
    assert TOKENIZER.token_bytes(EOS) == b"<|im_end|>"
    assert TOKENIZER.decode([EOS]) == ""
    assert TOKENIZER.decode([EOS], skip_special_tokens=False) == "<|im_end|>"
    assert TOKENIZER.is_special(EOS)
    assert not TOKENIZER.is_special(0)
    assert TOKENIZER.eos_ids == {EOS}
    assert Tokenizer(byte_tokenizer(), extra_eos=(3, EOS)).eos_ids == {3, EOS}


def test_an_id_without_a_token() -> None:
    """Vocabularies are padded; the model may still draw such an id."""
    assert TOKENIZER.token_bytes(270) == b""
    assert TOKENIZER.decode([270]) == ""


def test_byte_fallback() -> None:
    vocabulary = {"<unk>": 0, **{f"<0x{b:02X}>": 1 + b for b in range(256)}}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.ByteFallback()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert [tokenizer.token_bytes(1 + b) for b in range(256)] == [bytes([b]) for b in range(256)]


def test_a_conversation() -> None:
    text = TOKENIZER.render_chat([{"role": "system", "content": "s"}, *HELLO])
    assert text == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.render_chat(HELLO, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert TOKENIZER.encode_chat(HELLO) == TOKENIZER.encode(TOKENIZER.render_chat(HELLO))


def test_the_template_alone_writes_the_first_token() -> None:
    """A tokenizer that adds a BOS by itself must not add a second one to a template that writes it."""
    from tokenizers.processors import TemplateProcessing

    hf = byte_tokenizer()
    hf.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", BOS)]
    )
    tokenizer = Tokenizer(hf)
    assert tokenizer.encode("a") == [BOS, *TOKENIZER.encode("a")]
    assert tokenizer.encode("a", add_special_tokens=False) == TOKENIZER.encode("a")
    assert tokenizer.encode_chat(HELLO) == TOKENIZER.encode_chat(HELLO)
    assert tokenizer.encode_chat(HELLO).count(BOS) == 2  # one a turn, as the template has it


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[7]['content'] }}",
        "{{ undefined_thing.x }}",
        "{% for %}",
        "{{ messages | nonsense }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_that_fails_is_the_requests_fault(template: str) -> None:
    with pytest.raises(RequestError, match="chat template") as caught:
        with_template(template).encode_chat(HELLO)
    assert caught.value.param == "messages"


def test_the_reason_a_template_gives_is_passed_on() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        with_template("{{ raise_exception('roles must alternate') }}").render_chat(HELLO)


def test_no_template() -> None:
    tokenizer = with_template(None)
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="/v1/completions"):
        tokenizer.encode_chat(HELLO)


def test_truncation_of_the_file_is_off(tmp_path: Path) -> None:
    hf = byte_tokenizer()
    hf.backend_tokenizer.enable_truncation(3)
    hf.backend_tokenizer.enable_padding(length=10)
    hf.save_pretrained(tmp_path)
    assert len(Tokenizer.load(tmp_path).encode("abcdefgh")) == 8


def test_only_fast_tokenizers() -> None:
    with pytest.raises(ModelRefused, match="not a fast tokenizer"):
        Tokenizer(object())
