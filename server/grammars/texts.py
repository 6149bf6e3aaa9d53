"""Grammars of every kind as the one text that the grammar library reads. Imports nothing of this server."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

# What stands between two tokens of JSON at most: a line break and 19 levels of four.
BLANKS = r"[\x20\x0A\x0D\x09]{1,80}"
# \u and four digits would spell a name that a schema has a rule for in a way that the rule does not see.
_ESCAPES = 'nrbtf\\"'
_TYPES = ["array", "boolean", "null", "number", "object", "string"]
_VALUES = ("const", "enum")  # keywords with values in them, not schemas
_MOST_DECIMALS = 6  # of a multipleOf whose numbers may be written with fewer


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
        guidance["whitespace_pattern"] = options.get("whitespace_pattern") or BLANKS
    return {"x-guidance": guidance, **({} if schema is True else with_short_decimals(schema))}


def with_short_decimals(schema: Any) -> Any:
    """A schema of the same meaning whose numbers need not have all decimals of their ``multipleOf``.

    The library divides digits, and takes 1.50 but not 1.5 for a multiple of 0.25. So that one becomes one of
    several: with two decimals at most a multiple of 0.25, with one of 0.5, with none of 1.
    """
    if isinstance(schema, list):
        return [with_short_decimals(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: each if key in _VALUES else with_short_decimals(each) for key, each in schema.items()}
    steps, types = _steps(made.get("multipleOf")), made.get("type", _TYPES)
    if len(steps) < 2 or "number" not in types or any(key in made for key in _VALUES):
        return made
    del made["multipleOf"]
    options = [{"type": "number", "multipleOf": step} for step in steps]
    others = [each for each in types if each not in ("number", "integer")] if types != "number" else []
    either = {"anyOf": [{"type": others}, *options] if others else options}
    return {**made, "allOf": [*made["allOf"], either]} if "allOf" in made else {**made, "allOf": [either]}


def _steps(multiple: Any) -> list[float]:
    """The multiples of a number with decimals that have as many, one less, and so on to none."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < multiple < math.inf:
        return []
    places = -int(Decimal(repr(multiple)).normalize().as_tuple().exponent)
    if not 0 < places <= _MOST_DECIMALS:
        return []
    unit = 10**places
    count = int(Decimal(repr(multiple)) * unit)
    steps = [math.lcm(count, unit // 10**kept) for kept in range(places, -1, -1)]
    return [step // unit if step % unit == 0 else step / unit for step in dict.fromkeys(steps)]


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
