"""Tokenizers that share one vocabulary: another set of added tokens costs no second copy of the model.

Building a tokenizer from its JSON takes tenths of a second with the interpreter held, and tens of megabytes.
The library's parts are reference counted, so a second tokenizer over the same parts takes neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer


def with_added_tokens(source: Any, tokens: Iterable[AddedToken], **parts: Any) -> Any:
    """A tokenizer over the model of ``source`` with other added tokens.

    Those in the vocabulary keep their ids, the others get the ids that follow it, in order.

    Args:
        source: a ``tokenizers.Tokenizer``.
        tokens: all added tokens of the result.
        parts: ``normalizer``, ``pre_tokenizer``, ``post_processor`` or ``decoder`` where not the source's.
    """
    made = Tokenizer(source.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = parts.get(name, getattr(source, name))
        if part is not None:
            setattr(made, name, part)
    for special, group in groupby(tokens, lambda token: token.special):
        (made.add_special_tokens if special else made.add_tokens)(list(group))
    return made


def added_tokens(tokenizer: Any) -> dict[int, AddedToken]:
    """The added tokens by id, in the order of their ids."""
    return dict(sorted(tokenizer.get_added_tokens_decoder().items()))


def part_from_json(name: str, section: Any) -> Any:
    """One part of a tokenizer (``post_processor``, ``decoder``, …) from its section of ``tokenizer.json``."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    sections = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        **sections,
        "decoder": None,
        "model": empty,
    }
    return getattr(Tokenizer.from_str(json.dumps({**document, name: section})), name)
