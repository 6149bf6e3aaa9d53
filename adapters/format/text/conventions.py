"""The tokenizer and template of a base, and what an adapter brings in their place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cachetools import LRUCache

from manylora.adapters.format.answers.finding import find_format
from manylora.adapters.format.answers.samples import render_samples
from manylora.adapters.format.answers.syntax import AnswerFormat
from manylora.adapters.format.answers.writing import describe
from manylora.adapters.format.text.template_syntax import TemplateSearches, variables
from manylora.adapters.format.text.tokenizer_file import description

_MAX_KNOWN = 256  # files; kilobytes each


@dataclass(frozen=True)
class BaseText:
    """The base model's tokenizer and template, as far as adapters are compared with them."""

    template: str | None
    special: Mapping[str, str]  # "eos_token" -> "</s>", …
    load: Callable[[], str] = field(compare=False)  # tokenizer.json of the tokenizer in use
    response_template: Any = None  # of the tokenizer's config
    # What the last files of adapters came to, by digest: most are copies of one another.
    known: LRUCache[bytes, Mapping[str, Any]] = field(
        default_factory=lambda: LRUCache(_MAX_KNOWN), compare=False
    )

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What the tokenizer does, as :mod:`tokenizer_file` describes it."""
        return description(json.loads(self.load()))

    def prepare(self) -> None:
        """Work out now what adapters are compared with: it takes tenths of a second of the interpreter."""
        _ = self.facts, self.variables, self.answers

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template mentions."""
        return variables(self.template or "")

    @cached_property
    def answers(self) -> AnswerFormat:
        """How the model writes answers. Its template is trusted as the model is, and rendered here."""

        def render(template: str) -> Mapping[str, str | None]:
            return render_samples({"template": template, "special": dict(self.special)})

        return find_format(self.template, self.response_template, render)

    def has_id(self, token_id: int) -> bool:
        """Whether the vocabulary, without added tokens, uses an id."""
        return any(start <= token_id < end for start, end in self.facts["ids"])

    @property
    def has_gaps(self) -> bool:
        """Whether the vocabulary leaves ids out, so that an added token may meet another's id."""
        return len(self.facts["ids"]) > 1

    def has_piece(self, text: str) -> bool:
        """Whether the vocabulary, without added tokens, has a token."""
        vocabulary = json.loads(self.load())["model"].get("vocab", ())
        return text in (vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary})


@dataclass(frozen=True, slots=True)
class OwnTokenizer:
    """What an adapter's tokenizer has that its base's has not; all else is the base's."""

    added: str  # all added tokens as JSON, in the form of tokenizer.json
    post_processor: str | None  # that section as JSON; None: the base's
    around: str  # the ids that it puts before and after a text, as JSON

    @property
    def added_tokens(self) -> list[dict[str, Any]]:
        """All added tokens, those of the base included."""
        return json.loads(self.added)  # type: ignore[no-any-return]

    def to_json(self, base: BaseText) -> str:
        """The whole ``tokenizer.json``."""
        whole = json.loads(base.load()) | {"added_tokens": self.added_tokens}
        if self.post_processor is not None:
            whole["post_processor"] = json.loads(self.post_processor)
        return json.dumps(whole | {"truncation": None, "padding": None}, ensure_ascii=False)


@dataclass(frozen=True)
class AdapterText:
    """What an adapter brings; None where it leaves that to the base."""

    template: str | None = None
    tokenizer: OwnTokenizer | None = None
    special: Mapping[str, str] | None = None  # its special tokens, the base's where it names none
    top_id: int = -1  # the largest id of an added token
    searches: TemplateSearches | None = None  # of its template
    answers: AnswerFormat | None = None  # how it writes them

    @property
    def template_digest(self) -> str | None:
        """The digest that names the template."""
        return None if self.template is None else _sha(self.template)

    @property
    def tokenizer_digest(self) -> str | None:
        """The digest that names the tokenizer with its special tokens."""
        if self.tokenizer is None and self.special is None:
            return None
        own = None if self.tokenizer is None else [self.tokenizer.added, self.tokenizer.around]
        return _sha(json.dumps([own, sorted((self.special or {}).items())]))

    def details(self) -> dict[str, object]:
        """For people and for the registry: which template and tokenizer answer, and in which format."""
        template, tokenizer = self.template_digest, self.tokenizer_digest
        return {
            "chat_template": "base" if template is None else f"adapter:{template}",
            "tokenizer": "base" if tokenizer is None else f"adapter:{tokenizer}",
            "format": "base" if self.answers is None else describe(self.answers),
        }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
