"""An adapter's tokenizer is made beside running streams: it never holds the interpreter for long."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from manylora.adapters.format.faults import Faults
from manylora.adapters.format.text.read_text import read_text
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import CHAT_TEMPLATE

SIZE = 49_152
LONGEST = 0.05  # seconds that the interpreter may be held


def large() -> Backend:
    """A byte-level tokenizer of the usual size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [pair for pair, _ in zip(product(alphabet, alphabet), range(SIZE - 256), strict=False)]
    pieces = [*alphabet, *(first + second for first, second in merges)]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return backend


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    hf = PreTrainedTokenizerFast(tokenizer_object=large(), bos_token="<|im_start|>", eos_token="<|im_end|>")
    hf.chat_template = CHAT_TEMPLATE
    return Tokenizer(hf)


@pytest.mark.slow
def test_reading_and_making_one_takes_this_thread_no_time(base: Tokenizer) -> None:
    """What a thread computes altogether bounds how long it can have held the interpreter at once."""
    base.base_text().prepare()
    backend = large()
    backend.add_special_tokens([f"<call{i}>" for i in range(64)])
    files = {"tokenizer.json": backend.to_str().encode(), "chat_template.jinja": b"{{ messages }}<call1>"}
    faults = Faults()
    results: list[Any] = []
    spent = []
    steps = (
        lambda: read_text(files, base.base_text(), None, faults),
        lambda: base.with_text(results[0]),
        lambda: results[1].encode_chat([{"role": "user", "content": "a<call0>"}]),
    )
    for step in steps:
        started = time.thread_time()
        results.append(step())
        spent.append(time.thread_time() - started)
    faults.raise_any()
    assert results[0].tokenizer is not None
    assert max(spent) < LONGEST, spent
    assert results[1].vocab_size == SIZE + 66
