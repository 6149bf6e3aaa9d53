"""Prompts of a wanted length that look like English, are the same on every machine, and never repeat.

A prefix cache must not flatter anyone: two prompts differ from their first words on, unless a common
prefix is asked for. Lengths are in words, so that nobody's tokenizer is needed; what they came to in
tokens is reported by the server.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

WORDS_PER_TOKEN = 0.815  # of these words under SmolLM2's tokenizer
NUMBER_TOKENS = 6  # a prompt's number, which comes first


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SUBJECTS = _words("teacher engineer farmer doctor captain student writer lawyer gardener driver painter")
_VERBS = _words("describes measures repairs explains follows carries prepares remembers examines protects")
_ADJECTIVES = _words("quiet heavy bright ancient careful narrow golden distant simple broken wooden")
_OBJECTS = _words("river machine contract garden letter bridge market engine island window kitchen")
_LINKS = _words("because while although before after until whenever since unless so")


def sentence(rng: random.Random) -> list[str]:
    """A sentence of about sixteen words, without punctuation marks of their own."""
    return [
        *("The", rng.choice(_ADJECTIVES), rng.choice(_SUBJECTS), rng.choice(_VERBS), "the"),
        *(rng.choice(_ADJECTIVES), rng.choice(_OBJECTS), rng.choice(_LINKS), "another"),
        *(rng.choice(_SUBJECTS), rng.choice(_VERBS), str(rng.randrange(10, 1000)), rng.choice(_ADJECTIVES)),
        *("things", "near", "the", rng.choice(_OBJECTS) + "."),
    ]


def english(words: int, seed: str) -> str:
    """A text of exactly ``words`` words, a function of ``seed`` alone."""
    rng = random.Random(seed)
    out: list[str] = []
    while len(out) < words:
        out += sentence(rng)
    return " ".join(out[:words])


@dataclass(frozen=True, slots=True)
class PromptShape:
    """How long prompts are, and how much of each is common to all. Both in (approximate) tokens."""

    tokens: int = 173
    shared_tokens: int = 0

    def prompt(self, seed: str) -> str:
        """The prompt of one request; ``seed`` tells it from all others."""
        shared = english(round(self.shared_tokens * WORDS_PER_TOKEN), "shared")
        own = max(1, round((self.tokens - self.shared_tokens - NUMBER_TOKENS) * WORDS_PER_TOKEN))
        number = random.Random(seed).randrange(10**5)
        return f"{shared} {number} {english(own, seed)}".lstrip()
