"""What programs get from :class:`manylora.LLM`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to a prompt."""

    text: str
    finish_reason: str  # "stop" or "length"
    logprobs: Mapping[str, Any] | None  # in OpenAI's shape, if asked for


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to one prompt: one, or as many as ``n`` asked for."""

    choices: tuple[Choice, ...]
    model: str  # what answered, by revision: "pirate@3f9a1c2e*0.6+json@77d0aa01*0.4"
    prompt_tokens: int
    completion_tokens: int

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a given completion."""

    logprob: float  # natural logarithm of the completion's probability, given the prompt
    token_logprobs: tuple[float, ...]  # by token of the completion
    tokens: tuple[str, ...]
    model: str  # what judged, by revision


def completion(answer: Mapping[str, Any]) -> Completion:
    """The answer of ``POST /v1/completions``."""
    return _read(answer, [(choice["text"], choice) for choice in answer["choices"]])


def chat_completion(answer: Mapping[str, Any]) -> Completion:
    """The answer of ``POST /v1/chat/completions``."""
    return _read(answer, [(choice["message"]["content"], choice) for choice in answer["choices"]])


def _read(answer: Mapping[str, Any], choices: Sequence[tuple[str, Mapping[str, Any]]]) -> Completion:
    usage = answer["usage"]
    found = tuple(Choice(text, choice["finish_reason"], choice["logprobs"]) for text, choice in choices)
    return Completion(found, answer["model"], usage["prompt_tokens"], usage["completion_tokens"])
