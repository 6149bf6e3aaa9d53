"""The one grammar that a chat answer follows: what it says, the tools it calls, behind its reasoning."""

from __future__ import annotations

import json
from typing import Any

from manylora.adapters.format.answers.syntax import CallSyntax, ReasoningSyntax
from manylora.server.api.request.schemas import ChatBody
from manylora.server.api.request.tools import ToolUse
from manylora.server.errors import RequestError
from manylora.server.grammars.schemas import SchemaRefused, prepare_schema
from manylora.server.grammars.spec import GrammarKind, GrammarSpec, Marker, Preface
from manylora.server.grammars.tool_calls import CalledTool, calls_grammar
from manylora.server.model.text.conventions import TextConventions

_BUDGET = "thinking_token_budget"
_ANYTHING = "start: TEXT\nTEXT: /(?s:.*)/"


def answer_grammar(
    body: ChatBody,
    use: ToolUse | None,
    conventions: TextConventions,
    *,
    in_reasoning: bool,
    strict: bool = False,
) -> GrammarSpec | None:
    """The grammar that the answer to ``body`` follows; None if it is free.

    Args:
        body: the request.
        use: the tools that the answer may call; None: none.
        conventions: of the model that answers.
        in_reasoning: the prompt ends within reasoning.
        strict: whether calls are held to the schema of a tool that does not say.

    Raises:
        RequestError: answers can't be held to what is asked for.
    """
    tokenizer, form = conventions.tokenizer, conventions.answers
    control = {text: token_id for token_id, text in tokenizer.control_tokens.items()}
    spec = body.grammar_spec()
    if use is not None:
        assert form.calls is not None, "tools are refused where no format is known"
        spec = _with_calls(spec, use, form.calls, control, strict=strict)
    budget = body.thinking_token_budget
    if form.reasoning is None:
        return spec
    if spec is None:
        if budget is None:
            return None
        spec = GrammarSpec.lark(_ANYTHING, param=_BUDGET)
    return spec.after(_preface(form.reasoning, control, in_reasoning=in_reasoning, budget=budget))


def _with_calls(
    said: GrammarSpec | None, use: ToolUse, syntax: CallSyntax, control: dict[str, int], *, strict: bool
) -> GrammarSpec | None:
    tools = [
        CalledTool(
            tool.function.name,
            tool.function.parameters,
            strict if tool.function.strict is None else tool.function.strict,
            f"{use.path_of(tool)}.parameters",
        )
        for tool in use.callable
    ]
    content = None if said is None or use.required else _schema(said)
    return calls_grammar(syntax, tools, control, required=use.required, several=use.several, content=content)


def _schema(said: GrammarSpec) -> Any:
    """The schema of what is said where no tool is called."""
    if said.kind is not GrammarKind.JSON_SCHEMA:
        raise RequestError(
            f"'{said.param}' and 'tools' go together only as a JSON schema, or with a 'tool_choice' of "
            "'none' or 'required'",
            said.param,
        )
    try:
        schema, _ = prepare_schema(
            json.loads(said.text), closed=said.style.closed, lenient=said.style.lenient
        )
    except SchemaRefused as refused:
        path = f"{said.param}{refused.path}"
        raise RequestError(f"'{path}': {refused}", path) from None
    return schema


def _preface(
    reasoning: ReasoningSyntax, control: dict[str, int], *, in_reasoning: bool, budget: int | None
) -> Preface:
    """The block of reasoning before an answer.

    Raises:
        RequestError: it can't be bounded.
    """

    def marker(text: str) -> Marker:
        return Marker(text.strip(), control.get(text.strip()))

    if budget is not None and marker(reasoning.close).token_id is None:
        raise RequestError(
            f"'{_BUDGET}' is not supported: {reasoning.close!r} is no token of this model",
            _BUDGET,
            "unsupported_parameter",
        )
    return Preface(
        marker(reasoning.close), None if in_reasoning else marker(reasoning.open), max_tokens=budget
    )
