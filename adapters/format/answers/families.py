"""Formats of families of models, by the words that their chat templates hold.

They say what a template's writing can't: Llama 3's marker that may be left out, and formats of templates
that leave earlier calls to their readers. The words are the markers that the models were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from manylora.adapters.format.answers.syntax import (
    AnswerFormat,
    CallSyntax,
    IdForm,
    ReasoningSyntax,
    Shape,
    Source,
    Tags,
)

_CODER = Tags("<parameter=", ">\n", "\n</parameter>\n")

# By name; in the order in which they are looked for, the more particular first.
CALLS: Final[Mapping[str, tuple[tuple[str, ...], CallSyntax]]] = {
    "qwen3-coder": (
        ("<tool_call>", "<function=", "<parameter="),
        CallSyntax(
            Shape.TAGGED,
            open="<tool_call>\n<function=",
            close="</function>\n</tool_call>",
            separator="\n",
            name_end=">\n",
            tags=_CODER,
        ),
    ),
    "glm-4.5": (
        ("<tool_call>", "<arg_key>", "<arg_value>"),
        CallSyntax(
            Shape.TAGGED,
            open="<tool_call>",
            close="</tool_call>",
            separator="\n",
            name_end="\n",
            tags=Tags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
        ),
    ),
    "minimax-m2": (
        ("<minimax:tool_call>", "<invoke name=", "<parameter name="),
        CallSyntax(
            Shape.TAGGED,
            begin="<minimax:tool_call>\n",
            end="\n</minimax:tool_call>",
            open='<invoke name="',
            close="</invoke>",
            separator="\n",
            name_end='">\n',
            tags=Tags('<parameter name="', '">', "</parameter>\n"),
        ),
    ),
    "smollm2": (
        ("<tool_call>[",),
        CallSyntax(Shape.OBJECT, begin="<tool_call>", end="</tool_call>", separator=", ", listed=True),
    ),
    "hermes": (
        ("<tool_call>", "</tool_call>"),
        CallSyntax(Shape.OBJECT, open="<tool_call>\n", close="\n</tool_call>", separator="\n"),
    ),
    "mistral-named": (
        ("[TOOL_CALLS]", "[ARGS]"),
        CallSyntax(Shape.NAMED, open="[TOOL_CALLS]", name_end="[ARGS]", ids=IdForm.NINE),
    ),
    "mistral": (
        ("[TOOL_CALLS]",),
        CallSyntax(Shape.OBJECT, begin="[TOOL_CALLS]", separator=", ", listed=True, ids=IdForm.NINE),
    ),
    "granite": (
        ("<|tool_call|>",),
        CallSyntax(Shape.OBJECT, begin="<|tool_call|>", separator=", ", listed=True),
    ),
    "deepseek-v3": (
        ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"),
        CallSyntax(
            Shape.NAMED,
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            close="\n```<｜tool▁call▁end｜>",
            separator="\n",
            name_end="\n```json\n",
        ),
    ),
    "deepseek-v3.1": (
        ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        CallSyntax(
            Shape.NAMED,
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            open="<｜tool▁call▁begin｜>",
            close="<｜tool▁call▁end｜>",
            name_end="<｜tool▁sep｜>",
        ),
    ),
    "llama-3": (
        ("<|start_header_id|>", '"parameters": '),
        CallSyntax(Shape.OBJECT, separator="; ", arguments_key="parameters", optional="<|python_tag|>"),
    ),
}

REASONING: Final = (
    ReasoningSyntax("<think>", "</think>"),
    ReasoningSyntax("[THINK]", "[/THINK]"),
    ReasoningSyntax("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningSyntax("<seed:think>", "</seed:think>"),
    ReasoningSyntax("<reasoning>", "</reasoning>"),
)


def calls_of_family(template: str) -> CallSyntax | None:
    """How a model with this chat template writes calls, by the words in it."""
    return next((syntax for words, syntax in CALLS.values() if all(w in template for w in words)), None)


def reasoning_of_family(template: str) -> ReasoningSyntax | None:
    """The markers of reasoning that the template knows."""
    return next((known for known in REASONING if known.close in template), None)


def by_name(name: str, reasoning: ReasoningSyntax | None = None) -> AnswerFormat:
    """The format of a family, for tests and examples."""
    return AnswerFormat(CALLS[name][1], reasoning, Source.FAMILY)
