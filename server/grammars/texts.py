"""Grammars of every kind as the one text that the grammar library reads. Imports nothing of this server."""

from __future__ import annotations

import json
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

# What JSON takes for blanks. The library lets one such piece follow another, so their number has no bound.
_BLANKS = r"[\x20\x0A\x0D\x09]{1,64}"
# \u and four digits would spell a name that a schema has a rule for in a way that the rule does not see.
_ESCAPES = 'nrbtf\\"'


class TextRefused(Exception):
    """A grammar that can't be read. ``str()`` is a clause."""


def library_text(kind: str, text: Any, options: dict[str, Any], preface: dict[str, Any] | None) -> str:
    """What the library compiles: JSON with a list of grammars, of which the first describes the answer.

    Args:
        kind: a value of ``GrammarKind``.
        text: its text; of a JSON schema what it says, as ``prepare_schema`` returns it.
        options: of a JSON schema: ``whitespace_pattern``, ``compact`` and ``lenient``, if given.
        preface: the fields of a ``Preface``, if there is one.

    Raises:
        TextRefused: it is not what ``kind`` says.
    """
    grammars = _grammars(kind, text, options)
    if preface is not None:
        grammars[0]["name"] = "answer"
        grammars = [{"lark_grammar": _behind(preface)}, *grammars]
    return json.dumps({"grammars": grammars})


def _grammars(kind: str, text: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    if kind == "JSON schema":
        return [{"json_schema": _schema(text, options)}]
    if kind == "regular expression":
        return [{"lark_grammar": f"start: TEXT\nTEXT: /{regex_to_lark(_unanchored(text), 'd')}/"}]
    if kind == "choice":
        return [{"lark_grammar": "start: " + " | ".join(map(_literal, json.loads(text)))}]
    if kind == "Lark grammar":
        return [{"lark_grammar": text}]
    if kind == "GBNF grammar":
        return [{"lark_grammar": _from_gbnf(text)}]
    return _ready(text)


def _schema(schema: Any, options: dict[str, Any]) -> dict[str, Any]:
    if schema is False:
        raise TextRefused("nothing is valid")
    guidance: dict[str, Any] = {"json_allowed_escapes": _ESCAPES}
    if options.get("lenient"):
        guidance["lenient"] = True
    if options.get("compact"):
        guidance["whitespace_flexible"] = False
    else:
        guidance["whitespace_pattern"] = options.get("whitespace_pattern", _BLANKS)
    return {"x-guidance": guidance, **({} if schema is True else schema)}


def _unanchored(pattern: str) -> str:
    """``pattern`` without the ^ and $ around its alternatives: the whole text has to match anyway."""
    parts, depth, in_class, start, index = [], 0, False, 0, 0
    while index < len(pattern):
        char = pattern[index]
        if char == "\\":
            index += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
            index += pattern.startswith("^", index + 1)
            index += pattern.startswith("]", index + 1)
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            parts.append(pattern[start:index])
            start = index + 1
        index += 1
    parts.append(pattern[start:])
    return "|".join(_without_anchors(part) for part in parts)


def _without_anchors(part: str) -> str:
    part = part.removeprefix("^")
    body = part.removesuffix("$")
    backslashes = len(body) - len(body.rstrip("\\"))
    return part if backslashes % 2 else body


def _literal(choice: str) -> str:
    return json.dumps(choice, ensure_ascii=False)


def _from_gbnf(text: str) -> str:
    try:
        return str(gbnf_to_lark(text))
    except RecursionError:
        raise TextRefused("it is nested too deeply") from None
    except Exception as error:  # its reader raises what it meets
        raise TextRefused(str(error)) from error


def _ready(text: str) -> list[dict[str, Any]]:
    try:
        grammars = json.loads(text)["grammars"]
        if grammars and all(isinstance(each, dict) for each in grammars):
            return list(grammars)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise TextRefused('it must be {"grammars": [...]}')


def _behind(preface: dict[str, Any]) -> str:
    """The grammar of free text and the grammar ``@answer`` behind it."""
    limit = preface["max_tokens"]
    opens, closes = preface["opens"], preface["closes"]
    lines = []
    if closes["token_id"] is None and limit is not None:
        raise TextRefused("text is bounded only before a mark that is a control token")
    if closes["token_id"] is None:
        lines += [f"free[suffix={json.dumps(closes['text'])}]: /(?s:.*)/", "inside: free"]
    else:
        bound = "" if limit is None else f"[max_tokens={limit}]"
        lines += [f"free{bound}: /(?s:.*)/", f"inside: free <[{closes['token_id']}]>"]
    lines.append(r"GAP: /[ \n\r\t]{1,16}/")
    if opens is None:
        lines.insert(0, "start: inside GAP? @answer")
    else:
        mark = json.dumps(opens["text"]) if opens["token_id"] is None else f"<[{opens['token_id']}]>"
        lines.insert(0, f"block: {mark} inside GAP?")
        lines.insert(0, "start: block @answer" if preface["required"] else "start: block? @answer")
    return "\n".join(lines)
