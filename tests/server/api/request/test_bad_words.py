"""How forbidden words become tokens."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from manylora.server.api.request.bad_words import bad_word_ids
from manylora.server.model.text import tokenizer as text_tokenizer

MERGES = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("d", "o")]


@pytest.fixture(scope="module")
def conventions() -> Any:
    """A vocabulary that has " cat" and "cat" as one token each, and "dog" in pieces."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return SimpleNamespace(
        tokenizer=text_tokenizer.Tokenizer(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>"))
    )


@pytest.mark.parametrize(
    ("words", "spelled"),
    [
        (None, []),
        ([], []),
        (["cat"], [["cat"], [" cat"]]),
        ([" cat", "cat"], [["cat"], [" cat"]]),
        (["dog"], [["do", "g"], [" ", "do", "g"]]),
        (["\n"], [["\n"]]),
        ([" "], [[" "]]),
        (["<eos>"], [["<eos>"], [" ", "<eos>"]]),
    ],
)
def test_words_are_spelled_with_and_without_a_blank(
    conventions: Any, words: list[str] | None, spelled: list[list[str]]
) -> None:
    found = asyncio.run(bad_word_ids(conventions, words))
    tokens = [[conventions.tokenizer.token_text(token) for token in word] for word in found]
    assert tokens == spelled
