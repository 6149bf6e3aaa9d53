"""The tokenizer and the chat template of a model in a GGUF file, written as Hugging Face's files.

A GGUF file names the rule that cuts text into words before the merges. A rule that is not known here would
give other tokens than the model was trained on, and nothing would show it: it is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown
from manylora.adapters.format.foreign.gguf.reader import Metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, _OWN = 3, 4  # GGUF's types of tokens like <|im_start|>, and of others that are never cut
_GPT2, _SENTENCEPIECE = "gpt2", "llama"
# GGUF's names of pre-tokenizers that isolate digits before GPT-2's rule, and of GPT-2's rule alone.
_ISOLATE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})
_PLAIN = frozenset({"gpt-2"})
# Of those whose expression transformers has. Words that are a token as a whole are not put together there.
_WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "midm-2.0", "tekken"}
)
_EXPRESSIONS = _WHOLE_WORDS | {"qwen2", "deepseek-r1-qwen", "dbrx", "smaug-bpe", "gpt-4o"}
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen"})  # normalized to composed characters before
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_tokenizer(model: GgufModel, directory: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and the chat template, if there is one.

    Raises:
        BaseModelError: the tokenizer is of a kind that is not known, or its parts do not fit each other.
    """
    fields = _Fields(model)
    tokenizer = _byte_level(fields) if fields.kind == _GPT2 else _sentencepiece(fields)
    _add_special(tokenizer, fields)
    begins = fields.special("bos") if fields.adds_bos else None
    if begins is not None:
        _begin_with(tokenizer, begins, fields.tokens.index(begins))
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {name: token for name, key in _SPECIAL.items() if (token := fields.special(key)) is not None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.number("context_length"),
        "clean_up_tokenization_spaces": False,
        **special,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    template = model.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


class _Fields:
    """The tokenizer's metadata, checked."""

    def __init__(self, model: GgufModel) -> None:
        self.file = model.name
        self.metadata: Metadata = model.metadata
        self.kind, self.rule = self._get("model"), self._get("pre")
        known = (_ISOLATE_DIGITS | _PLAIN | _EXPRESSIONS) if self.kind == _GPT2 else {None, "default"}
        if self.kind not in (_GPT2, _SENTENCEPIECE) or self.rule not in known:
            raise self.fault(
                f"tokenizer {shown(self.kind)} with pre-tokenizer {shown(self.rule)} is not read"
            )
        self.tokens: Sequence[str] = self._list("tokens", str)
        if len(set(self.tokens)) < len(self.tokens):
            raise self.fault("its tokenizer has tokens twice")
        embedding = model.tensors.get("model.embed_tokens.weight")
        if embedding is not None and len(self.tokens) > embedding.shape[0]:
            raise self.fault(f"{len(self.tokens)} tokens and {embedding.shape[0]} embeddings")
        self.types: Sequence[int] = self._list("token_type", int)
        if len(self.types) != len(self.tokens):
            raise self.fault(f"{len(self.tokens)} tokens and {len(self.types)} types of them")

    @property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens that are put together, the first first."""
        pairs = []
        for merge in self._list("merges", str):
            first, _, second = merge.partition(" ")
            if not first or not second or " " in second:
                raise self.fault(f"the merge {shown(merge)} is no pair of tokens")
            pairs.append((first, second))
        return pairs

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with the token for that; without a word of it, as llama.cpp has it."""
        default = self.kind == _SENTENCEPIECE or self.rule in _WHOLE_WORDS
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", default))

    @property
    def adds_space(self) -> bool:
        """Whether a text is read as if a space stood before it."""
        return bool(self.metadata.get("tokenizer.ggml.add_space_prefix", self.kind == _SENTENCEPIECE))

    def special(self, kind: str) -> str | None:
        """The token with a purpose; None if there is none."""
        token = self._get(f"{kind}_token_id")
        if token is None:
            return None
        if type(token) is not int or not 0 <= token < len(self.tokens):
            raise self.fault(f"tokenizer.ggml.{kind}_token_id is {shown(token)}, which is no token")
        return self.tokens[token]

    def of_type(self, kind: int) -> list[str]:
        return [token for token, of in zip(self.tokens, self.types, strict=True) if of == kind]

    def fault(self, text: str) -> BaseModelError:
        return BaseModelError(f"{self.file}: {text}")

    def scores(self) -> Sequence[float]:
        return self._list("scores", float)

    def _get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def _list(self, key: str, of: type) -> Sequence[Any]:
        found = self._get(key)
        if not isinstance(found, list) or not all(type(item) is of for item in found):
            raise self.fault(f"tokenizer.ggml.{key} is not there, or not a list of the right kind")
        return found


def _byte_level(fields: _Fields) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers  # noqa: PLC0415

    vocab = {token: i for i, token in enumerate(fields.tokens)}
    merges = fields.merges
    try:
        whole = fields.rule in _WHOLE_WORDS
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole))
    except Exception as error:  # the library raises nothing narrower
        raise fields.fault(f"its merges and its tokens do not fit: {error}") from None
    expression = _expression(fields) if fields.rule in _EXPRESSIONS else None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=fields.adds_space, use_regex=expression is None)
    before: list[Any] = []
    if expression is not None:
        before.append(pre_tokenizers.Split(Regex(expression), behavior="isolated"))
    elif fields.rule in _ISOLATE_DIGITS:
        before.append(pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    if fields.rule in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _expression(fields: _Fields) -> str:
    """The regular expression of a rule by llama.cpp's name."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (  # noqa: PLC0415  (slow to import)
            GGUF_PRE_TOKENIZER_SPLITS,
        )
    except ImportError:
        raise fields.fault(
            f"pre-tokenizer {shown(fields.rule)} needs a newer transformers: pip install -U transformers"
        ) from None
    return str(GGUF_PRE_TOKENIZER_SPLITS[fields.rule])


def _sentencepiece(fields: _Fields) -> Tokenizer:
    """A vocabulary of SentencePiece's BPE, whose merges follow from the tokens' scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers  # noqa: PLC0415
    from transformers.tokenization_utils_base import generate_merges  # noqa: PLC0415  (slow to import)

    scores = fields.scores()
    if len(scores) != len(fields.tokens):
        raise fields.fault(f"{len(fields.tokens)} tokens and {len(scores)} scores")
    vocab = {token: i for i, token in enumerate(fields.tokens)}
    merges = generate_merges(vocab, dict(zip(fields.tokens, scores, strict=True)))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab, merges=merges, unk_token=fields.special("unknown"), fuse_unk=True, byte_fallback=True
        )
    )
    prefix = [normalizers.Prepend("▁")] if fields.adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if fields.adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _add_special(tokenizer: Tokenizer, fields: _Fields) -> None:
    from tokenizers import AddedToken  # noqa: PLC0415

    control, own = fields.of_type(CONTROL), fields.of_type(_OWN)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])


def _begin_with(tokenizer: Tokenizer, token: str, index: int) -> None:
    from tokenizers import processors  # noqa: PLC0415

    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, index)]
    )
