"""Grading: an answer and the item it is for, and a grader, make a number."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from manylora.adapters.grading.formula import FormulaFault
from manylora.adapters.grading.graders import (
    Grader,
    GraderFault,
    MultiGrader,
    ScoreModel,
    Single,
    StringCheck,
    TextSimilarity,
)
from manylora.adapters.grading.similarity import MAX_TEXT, MEASURES, cosine
from manylora.adapters.grading.templates import VariableMissing, render

# OpenAI's errors of a grade; those of graders that are refused here are never true.
ERRORS: Final = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)
_DETAILS: Final = (
    "python_grader_server_error_type",
    "python_grader_runtime_error_details",
    "model_grader_server_error_details",
)
_JUDGE_TOKENS: Final = 512  # of a judge's answer, if nothing is said
_CALLERS_FAULT: Final = range(400, 500)
_LATER: Final = 429


class Answered(Protocol):
    """What a route answered."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def body(self) -> Any:
        """Its JSON."""


Ask = Callable[[str, Mapping[str, Any]], Awaitable[Answered]]
"""Asks a route of a server, with a body: for judges (chat) and embeddings."""


@dataclass
class Grade:
    """What a grader found of an answer."""

    name: str
    type: str
    reward: float = 0.0
    error: str | None = None  # one of ERRORS
    details: str | None = None  # of an error of the judge's server
    seconds: float = 0.0
    parts: dict[str, Grade] = field(default_factory=dict)  # of a multi grader
    model: str | None = None  # that judged
    usage: dict[str, dict[str, int]] = field(default_factory=dict)  # tokens by judge

    def as_json(self) -> dict[str, Any]:
        """As OpenAI shows it."""
        errors: dict[str, Any] = {name: self._has(name) for name in ERRORS}
        errors |= dict.fromkeys(_DETAILS)
        errors["model_grader_server_error_details"] = self._all_details
        total = sum(each["total_tokens"] for each in self.usage.values())
        return {
            "reward": self.reward,
            "sub_rewards": {name: part.reward for name, part in self.parts.items()},
            "metadata": {
                "name": self.name,
                "type": self.type,
                "errors": errors,
                "execution_time": self.seconds,
                "scores": {name: part.reward for name, part in (self.parts or {self.name: self}).items()},
                "token_usage": total if self.usage else None,
                "sampled_model_name": self.model,
            },
            "model_grader_token_usage_per_model": self.usage,
        }

    def _has(self, error: str) -> bool:
        return self.error == error or any(part.error == error for part in self.parts.values())

    @property
    def _all_details(self) -> str | None:
        return self.details or next((part.details for part in self.parts.values() if part.details), None)


async def grade(grader: Grader, sample: str, item: Any, ask: Ask, *, base: str) -> Grade:
    """How good ``sample`` is.

    Args:
        grader: by which it is judged.
        sample: what a model answered; ``sample.output_text`` of templates, ``output_json`` where it is JSON.
        item: ``item`` of templates.
        ask: asks the server that has the judges.
        base: the model there whose embeddings ``cosine`` compares.

    Raises:
        GraderFault: a judge can't be asked so, by the answer of the server.
    """
    began = time.perf_counter()
    values = {"item": item, "sample": _sample(sample)}
    if isinstance(grader, MultiGrader):
        found = await _multi(grader, values, ask, base)
    else:
        found = await _one(grader, values, ask, base, "")
    found.seconds = time.perf_counter() - began
    return found


def _sample(text: str) -> dict[str, Any]:
    try:
        return {"output_text": text, "output_json": json.loads(text)}
    except (ValueError, RecursionError):
        return {"output_text": text}


async def _multi(grader: MultiGrader, values: Mapping[str, Any], ask: Ask, base: str) -> Grade:
    found = Grade(grader.name, grader.type)
    for name, each in grader.graders.items():
        part = await _one(each, values, ask, base, f"graders.{name}.")
        found.parts[name] = part
        for model, usage in part.usage.items():
            known = found.usage.setdefault(model, dict.fromkeys(usage, 0))
            found.usage[model] = {what: known[what] + usage[what] for what in usage}
    if any(part.error for part in found.parts.values()):
        return found  # a number computed from a missing one would mean nothing
    try:
        found.reward = grader.compute({name: part.reward for name, part in found.parts.items()})
    except FormulaFault as fault:
        found.error, found.details = "formula_parse_error", str(fault)
    return found


async def _one(grader: Single, values: Mapping[str, Any], ask: Ask, base: str, prefix: str) -> Grade:
    found = Grade(grader.name, grader.type)
    try:
        if isinstance(grader, ScoreModel):
            await _judge(grader, values, ask, found, prefix)
        else:
            found.reward = await _compare(grader, values, ask, base, found)
    except VariableMissing as missing:
        names_json = "output_json" in str(missing) and "output_json" not in values["sample"]
        found.error = "sample_parse_error" if names_json else "invalid_variable_error"
        found.details = str(missing)
    return found


async def _compare(
    grader: StringCheck | TextSimilarity, values: Mapping[str, Any], ask: Ask, base: str, found: Grade
) -> float:
    text, reference = render(grader.input, values), render(grader.reference, values)
    if isinstance(grader, StringCheck):
        return float(_CHECKS[grader.operation](text, reference))
    if max(len(text), len(reference)) > MAX_TEXT:
        raise VariableMissing(f"a text that is compared has more than {MAX_TEXT:,} characters")
    if grader.evaluation_metric != "cosine":
        return await asyncio.to_thread(MEASURES[grader.evaluation_metric], text, reference)
    if not text or not reference:
        return float(text == reference)
    answer = await ask("/v1/embeddings", {"model": base, "input": [text, reference]})
    if answer.status != 200:
        found.error, found.details = "other_error", _said(answer)
        return 0.0
    first, second = (each["embedding"] for each in answer.body["data"])
    return cosine(first, second)


_CHECKS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


async def _judge(grader: ScoreModel, values: Mapping[str, Any], ask: Ask, found: Grade, prefix: str) -> None:
    messages = [
        {"role": each.role, "content": "".join(render(text, values) for text in each.texts)}
        for each in grader.input
    ]
    answer = await ask("/v1/chat/completions", {**_asked(grader), "messages": messages})
    if answer.status in _CALLERS_FAULT and answer.status != _LATER:
        param = answer.body["error"].get("param")
        where = f"{prefix}{'model' if param == 'model' else 'sampling_params' if param else 'input'}"
        raise GraderFault(f"{prefix}model: {_said(answer)}", where)
    if answer.status != 200:
        found.error, found.details = "model_grader_server_error", _said(answer)
        return
    found.model, usage = answer.body["model"], answer.body["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    kinds = ("prompt_tokens", "completion_tokens", "total_tokens")
    found.usage[answer.body["model"]] = {**{kind: usage[kind] for kind in kinds}, "cached_tokens": cached}
    score = _score(answer.body["choices"][0]["message"]["content"])
    low, high = grader.bounds
    if score is None or not low <= score <= high:
        found.error = "model_grader_parse_error"
    else:
        found.reward = score


def _asked(grader: ScoreModel) -> dict[str, Any]:
    """The request of a judge, but for its messages."""
    params = grader.sampling_params
    low, high = grader.bounds
    schema = {
        "type": "object",
        "properties": {"result": {"type": "number", "minimum": low, "maximum": high}},
        "required": ["result"],
        "additionalProperties": False,
    }
    given = {} if params is None else params.model_dump(exclude_none=True)
    most = given.pop("max_completions_tokens", _JUDGE_TOKENS)
    return {
        "model": grader.model,
        "max_completion_tokens": most,
        "response_format": {"type": "json_schema", "json_schema": {"name": "score", "schema": schema}},
        **given,
    }


def _score(content: Any) -> float | None:
    try:
        result = json.loads(content)["result"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return float(result) if isinstance(result, int | float) and not isinstance(result, bool) else None


def _said(answer: Answered) -> str:
    try:
        return str(answer.body["error"]["message"])[:500]
    except (TypeError, KeyError):
        return f"the server answered {answer.status}"
