"""Tiny tokenizers of every kind that models come with, each with control tokens and a chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

CONTROL = ("<pad>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[MASK]")
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "system user assistant think start end im mask pad",
    "a <b> c | d / e [f] <g> | h > i < j ] k [ l = m",
    "1234567890 .,;:!?-_()'\"#$%&*+@~^ éàü \uff1c \uff1e \uff0f ß İ",
] * 3


def byte_bpe() -> Tokenizer:
    """Like GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(CONTROL[:3]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """Like Llama 2 and Mistral: spaces as a character of their own, bytes where it knows no character."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    again = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    again.normalizer, again.decoder = tokenizer.normalizer, tokenizer.decoder
    again.add_special_tokens(["<unk>", *CONTROL])
    return again


def unigram() -> Tokenizer:
    """Like T5 and XLM-R: control tokens are pieces of the model, with the best score."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", *CONTROL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<unk>", *CONTROL])
    return tokenizer


def wordpiece() -> Tokenizer:
    """Like BERT, with words cut at spaces alone: a control token is a word of the vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    characters = sorted(set("".join(CORPUS + list(CONTROL)).lower()) - {" "})
    vocabulary = ["<unk>", *CONTROL, *characters, *(f"##{character}" for character in characters)]
    tokenizer.model = models.WordPiece(
        {token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>", max_input_chars_per_word=200
    )
    tokenizer.add_special_tokens(["<unk>", *CONTROL])
    return tokenizer


def with_flags() -> Tokenizer:
    """Control tokens that take spaces with them, overlap, or count only as words, and others."""
    tokenizer = byte_tokenizer().backend_tokenizer
    tokenizer.add_special_tokens(
        [
            AddedToken("<s>", lstrip=True),
            AddedToken("</s>", rstrip=True),
            AddedToken("[MASK]", single_word=True),
            "<|im_end|><|im_start|>",
            "|><",
            "\u2192",
        ]
    )
    tokenizer.add_tokens(["</think>", "<think>", "<|tool|>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 259)])
    return tokenizer


def normalized() -> Tokenizer:
    """Control tokens that are recognized after a text has been normalized."""
    tokenizer = byte_tokenizer().backend_tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=True), AddedToken("</s>", normalized=True)])
    return tokenizer


def bytes_only() -> Tokenizer:
    """The tokenizer of the tiny models."""
    return byte_tokenizer().backend_tokenizer


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": bytes_only,
    "byte-level BPE": byte_bpe,
    "SentencePiece BPE": sentencepiece_bpe,
    "Unigram": unigram,
    "WordPiece": wordpiece,
    "flags": with_flags,
    "normalized": normalized,
}


@cache
def _file_of(kind: str) -> str:
    return str(KINDS[kind]().to_str())


def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of the kind; of the same training each time."""
    return Tokenizer.from_str(_file_of(kind))


def of_kind(kind: str, template: str = CHAT_TEMPLATE, **changes: Any) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers holds it, with a chat template."""
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<pad>", **changes}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind), **tokens)
    fast.chat_template = template
    return fast
