"""Chat templates as syntax: whether they parse, and what they look for in messages. Nothing is evaluated.

Imports nothing of ours: templates of strangers are parsed in a bounded process.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401  # imported on demand, which a bounded process can no more
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jinja2.debug  # noqa: F401  # as well
from jinja2 import Environment, TemplateError, ext, nodes
from jinja2.parser import Parser

# Methods of a text, and filters, whose arguments are searched for in it.
_SEARCHING = frozenset({"startswith", "endswith", "find", "rfind", "index", "rindex", "count"})
_CUTTING = frozenset(
    {"split", "rsplit", "partition", "rpartition", "replace", "removeprefix", "removesuffix"}
)


def describe(template: str) -> dict[str, Any]:
    """All that is known of ``template``, as JSON; ``{"fault", "reason"}`` where it can't be parsed."""
    fault = syntax_error(template)
    if fault is not None:
        return {"fault": "is not valid Jinja", "reason": fault}
    found = find_searches(template)
    return {
        "words": sorted(found.words),
        "cuts": sorted(found.cuts),
        "variables": sorted(variables(template)),
    }


def syntax_error(template: str) -> str | None:
    """Why the template can't be parsed; not even its constant expressions are evaluated."""
    try:
        _parse(template)
    except TemplateError as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    return None


@dataclass(frozen=True, slots=True)
class TemplateSearches:
    """What a chat template searches messages for."""

    source: str = ""  # the template itself
    words: frozenset[str] = frozenset()  # the constants it compares with, searches for or splits at
    cuts: frozenset[str] = frozenset()  # those among them that it may cut out


def find_searches(template: str) -> TemplateSearches:
    """What ``template`` searches for: ``</think>`` in ``{% if '</think>' in message.content %}``.

    Nothing where the template can't be parsed.
    """
    try:
        tree = _parse(template)
    except (TemplateError, RecursionError):
        return TemplateSearches(template)
    named: dict[str, set[str]] = {}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name):
            named.setdefault(assign.target.name, set()).update(_texts(assign.node, {}))
    words = {text for node in _compared(tree) for text in _texts(node, named)}
    cuts = {text for node in _cut(tree) for text in _texts(node, named)}
    return TemplateSearches(template, frozenset(words | cuts) - {""}, frozenset(cuts) - {""})


def variables(template: str) -> frozenset[str]:
    """The names that the template mentions, among them those of special tokens (``bos_token``)."""
    try:
        return frozenset(name.name for name in _parse(template).find_all(nodes.Name))
    except (TemplateError, RecursionError):
        return frozenset()


def _parse(template: str) -> nodes.Template:
    environment = Environment(  # nothing is rendered
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    return environment.parse(template)


def _compared(tree: nodes.Template) -> Iterator[nodes.Node]:
    """The expressions that messages are compared with, or searched for."""
    for compare in tree.find_all(nodes.Compare):
        yield compare.expr
        yield from (operand.expr for operand in compare.ops)
    for test in tree.find_all(nodes.Test):
        yield test.node
        yield from test.args
    yield from _arguments(tree, _SEARCHING)


def _cut(tree: nodes.Template) -> Iterator[nodes.Node]:
    """The expressions at which texts are cut."""
    yield from _arguments(tree, _CUTTING)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in ("split", "rsplit") and not call.args:
            yield from (nodes.Const(space) for space in (" ", "\n", "\t"))


def _arguments(tree: nodes.Template, names: frozenset[str]) -> Iterator[nodes.Node]:
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in names:
            yield from call.args
    for filtering in tree.find_all(nodes.Filter):
        if filtering.name in names:
            yield from filtering.args


def _texts(node: nodes.Node, named: dict[str, set[str]]) -> Iterator[str]:
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, nodes.Name):
        yield from named.get(node.name, ())
    elif isinstance(node, nodes.List | nodes.Tuple):
        for item in node.items:
            yield from _texts(item, named)


class _Generation(ext.Extension):
    """transformers' tag around what a model is trained on."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 reads it from the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read the template up to the closing tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
