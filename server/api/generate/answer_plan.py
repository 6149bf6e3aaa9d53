"""How the answer to one chat request is to be read: which tools it may call, where its reasoning begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from manylora.adapters.errors import MixError
from manylora.adapters.format.answers.parser import AnswerParser
from manylora.adapters.format.answers.syntax import AnswerFormat, IdForm
from manylora.adapters.format.answers.values import Properties
from manylora.server.api.request.schemas import ChatBody
from manylora.server.api.request.tools import ToolUse
from manylora.server.errors import RequestError
from manylora.server.model.text.conventions import TextConventions

_BUDGET = "thinking_token_budget"


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """What is known of an answer before it begins."""

    form: AnswerFormat = field(default_factory=AnswerFormat)
    tools: Mapping[str, Properties] | None = None  # that may be called; None: none
    in_reasoning: bool = False  # the prompt ends within reasoning
    max_calls: int | None = None
    named: bool = False  # the request says which tool is called
    tells_reasoning: bool = True
    shown: frozenset[int] = frozenset()  # control tokens that mark calls or reasoning

    @property
    def separates_reasoning(self) -> bool:
        """Whether answers have reasoning apart from what they say."""
        return self.form.reasoning is not None and self.tells_reasoning

    @property
    def reads_reasoning(self) -> bool:
        """Whether tokens of reasoning are counted."""
        return self.form.reasoning is not None

    @property
    def ids(self) -> IdForm:
        """Which ids calls get."""
        return IdForm.ANY if self.form.calls is None else self.form.calls.ids

    def parser(self) -> AnswerParser | None:
        """What reads one answer; None: all of it is text."""
        if self.form.reasoning is None and self.tools is None:
            return None
        return AnswerParser(self.form, self.tools, in_reasoning=self.in_reasoning, max_calls=self.max_calls)


def plan_answer(
    body: ChatBody, use: ToolUse | None, conventions: TextConventions, *, in_reasoning: bool
) -> AnswerPlan:
    """How the answer to ``body`` is read.

    Args:
        body: the request.
        use: the tools that it may call; None: none.
        conventions: of the model that answers.
        in_reasoning: the prompt ends within reasoning.

    Raises:
        RequestError: the model has no way to write what is asked for.
        MixError: the members of the mix write it in different ways.
    """
    form = conventions.answers
    if use is not None:
        check_format(conventions)
    if body.thinking_token_budget is not None and form.reasoning is None:
        raise RequestError(
            f"'{_BUDGET}' is not supported: this model marks no reasoning", _BUDGET, "unsupported_parameter"
        )
    if body.separate_reasoning is False or body.reasoning_format == "none":
        form = replace(form, reasoning=None)
    if use is None:
        form = replace(form, calls=None)
    return AnswerPlan(
        form,
        None if use is None else use.properties,
        in_reasoning=in_reasoning and form.reasoning is not None,
        max_calls=None if use is None or use.several else 1,
        named=use is not None and use.named,
        tells_reasoning=body.include_reasoning is not False,
        shown=shown_tokens(form, conventions.tokenizer.skipped_tokens),
    )


def check_format(conventions: TextConventions) -> None:
    """Refuse tools where nobody knows how calls are written.

    Raises:
        RequestError: the model's format is not known.
        MixError: the members of the mix have different ones.
    """
    if conventions.answers_conflict is not None:
        raise MixError(f"{conventions.answers_conflict}, so their mix can't call tools")
    if conventions.answers.calls is None:
        raise RequestError(
            "'tools' is not supported: it is not known how this model writes calls of tools",
            "tools",
            "unsupported_parameter",
        )


def shown_tokens(form: AnswerFormat, skipped: Mapping[str, int]) -> frozenset[int]:
    """The control tokens by which the parts of an answer are told."""
    markers = [] if form.calls is None else [*form.calls.markers]
    if form.reasoning is not None:
        markers += [form.reasoning.open, form.reasoning.close]
    return frozenset(
        token_id for text, token_id in skipped.items() if any(text in marker for marker in markers)
    )
