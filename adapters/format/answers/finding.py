"""Which format a model or an adapter writes: what comes with its tokenizer, else what its template tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from manylora.adapters.format.answers.differences import derive_calls, derive_reasoning
from manylora.adapters.format.answers.families import calls_of_family, reasoning_of_family
from manylora.adapters.format.answers.response_template import Unreadable, read_response_template
from manylora.adapters.format.answers.syntax import AnswerFormat, Source

Render = Callable[[str], Mapping[str, str | None]]  # a template to the renderings of the samples


def find_format(template: str | None, response_template: Any, render: Render) -> AnswerFormat:
    """The format by the first of its sources that tells of calls; reasoning may come from another.

    Args:
        template: the chat template.
        response_template: what the tokenizer's config says, if it does.
        render: renders the samples; asked only where the first source is silent.
    """
    note = None
    if response_template is not None:
        try:
            return read_response_template(response_template)
        except Unreadable as fault:
            note = f"response_template is not used: {fault}"
    if template is None:
        return AnswerFormat(note=note)
    return replace(_by_template(template, render), note=note)


def _by_template(template: str, render: Render) -> AnswerFormat:
    renderings = render(template)
    reasoning = derive_reasoning(renderings) or reasoning_of_family(template)
    family = calls_of_family(template)
    calls = derive_calls(renderings)
    if calls is not None and calls.trigger:
        return AnswerFormat(calls, reasoning, Source.DIFFERENCES)
    if family is not None:
        return AnswerFormat(family, reasoning, Source.FAMILY)
    if calls is not None:
        return AnswerFormat(calls, reasoning, Source.DIFFERENCES)
    return AnswerFormat(None, reasoning, Source.NONE if reasoning is None else Source.DIFFERENCES)
