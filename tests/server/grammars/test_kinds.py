"""Grammars that are no schemas: expressions, choices, Lark, GBNF, ready ones, and free text before any."""

from __future__ import annotations

import re

import pytest

from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.grammars.spec import GrammarKind, GrammarSpec, Marker, Preface
from tests.support.grammars import accepts, grammar, refusal, takes, tokenizer_of_bytes, walk

TOKENIZER = tokenizer_of_bytes()
START, END = 257, 258  # <|im_start|>, <|im_end|>


def regex(pattern: str) -> GrammarSpec:
    return GrammarSpec.regex(pattern, param="regex")


def lark(text: str) -> GrammarSpec:
    return GrammarSpec.lark(text, param="grammar")


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("[a-c]{2,3}", ("ab", "ccc"), ("a", "abcd", "ad")),
        ("^ab$", ("ab",), ("^ab$", "abb")),
        ("^a|b$", ("a", "b"), ("^a",)),
        (r"x?\$", ("$", "x$"), ("", "x")),
        (r"a\\$", ("a\\",), ("a\\$",)),
        (r"[$^]+", ("^$",), ("a",)),
        (r"[\]|]x", ("]x", "|x"), ("x",)),
        ("(foo|bar)/[0-9]+", ("foo/12",), ("foo/", "baz/1")),
        (r"\d{2}:\d{2}", ("12:30",), ("1:30", "१२:३०")),
        (r"\w+@\w+\.com\n", ("alan@enigma.com\n",), ("alan@enigma.com",)),
        ("é|☃+", ("é", "☃☃"), ("e",)),
        ("(?i)yes", ("YES", "yes"), ("no",)),
        ("a?", ("", "a"), ("aa",)),
    ],
)
def test_expressions_match_the_whole_answer(
    pattern: str, matching: tuple[str, ...], other: tuple[str, ...]
) -> None:
    made = grammar(regex(pattern))
    for text in matching:
        assert takes(made, text, TOKENIZER), text
    for text in other:
        assert not takes(made, text, TOKENIZER), text


def test_random_answers_match_the_expression() -> None:
    pattern = r"(red|gr[ae]y|#[0-9a-f]{6})(, [a-z]{1,4}){0,3}\."
    made = grammar(regex(pattern))
    for seed in range(20):
        text = walk(made, seed, TOKENIZER)
        assert text is not None
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("pattern", ["(", "(^x$)?", "a(?=b)", r"\bword", r"(a)\1", "[z-a]", "a{3,2}", "*"])
def test_expressions_that_are_none_are_refused(pattern: str) -> None:
    error = refusal(regex(pattern))
    assert (error.param, error.code) == ("regex", "invalid_grammar")


@pytest.mark.parametrize(
    "choices",
    [
        ["yes", "no"],
        ["a", "ab", "abc"],
        ['with "quotes"', "back\\slash", "line\nbreak", "tab\t", "nul\0"],
        ["é", "☃", "😀 and more"],
        ["", "something"],
        ["<|im_end|>", "/x/", "start: y", "{a}", "%json {}"],
        [f"choice {i}" for i in range(1000)],
        ["twice", "twice"],
    ],
    ids=lambda choices: choices[0] or "empty",
)
def test_choices(choices: list[str]) -> None:
    made = grammar(GrammarSpec.choice(choices, param="choice"))
    for choice in choices[:20]:
        ids = [token for char in choice for token in TOKENIZER.encode(char, add_special_tokens=False)]
        assert accepts_ids(made, ids), choice
        assert not takes(made, choice + "!", TOKENIZER)
    for seed in range(5):
        assert walk(made, seed, TOKENIZER) in choices


def accepts_ids(made: CompiledGrammar, ids: list[int]) -> bool:
    return accepts(made, ids, END)


SUMS_LARK = """
start: term ("+" term)*
term: NUMBER | "(" start ")"
NUMBER: /[0-9]{1,3}/
%ignore / /
"""
SUMS_GBNF = """
# sums of small numbers
root ::= term (" "? "+" " "? term)*
term ::= number | "(" root ")"
number ::= [0-9] [0-9]? [0-9]?
"""


@pytest.mark.parametrize(
    "spec", [lark(SUMS_LARK), GrammarSpec.gbnf(SUMS_GBNF, param="grammar")], ids=["lark", "gbnf"]
)
def test_grammars(spec: GrammarSpec) -> None:
    made = grammar(spec)
    for text in ("1", "12 + 345", "(1+2)+(3)"):
        assert takes(made, text, TOKENIZER), text
    for text in ("", "1+", "1234", "(1", "x"):
        assert not takes(made, text, TOKENIZER), text


def test_schemas_and_control_tokens_inside_of_lark() -> None:
    made = grammar(
        lark(
            f'start: "call " <[{START}]> %json {{"type": "object", "properties": {{"a": {{"type": "integer"}}}}, "required": ["a"], "additionalProperties": false}}'  # noqa: E501
        )
    )
    before, after = (TOKENIZER.encode(text, add_special_tokens=False) for text in ("call ", '{"a": 1}'))
    assert accepts_ids(made, [*before, START, *after])
    assert not accepts_ids(made, [*before, *after])
    named = grammar(lark('start: "x" <|im_start|> "y"'))
    assert accepts_ids(named, [*TOKENIZER.encode("x"), START, *TOKENIZER.encode("y")])


@pytest.mark.parametrize(
    "text",
    ["", "start", "start: a", 'start: "x', 'begin: "x"', "start: /(/", 'start: <|no_such|>', "start: <[999]>",
     "start: %json {", 'start: %json {"type": "widget"}', "%import nothing.X\nstart: X"],
)  # fmt: skip
def test_lark_that_is_none_is_refused(text: str) -> None:
    assert refusal(lark(text)).param == "grammar"


@pytest.mark.parametrize(
    "text", ["", 'root ::= "x', "root ::= other", 'x ::= "y"', "root ::= [a", "root = 3"]
)
def test_gbnf_that_is_none_is_refused(text: str) -> None:
    assert refusal(GrammarSpec.gbnf(text, param="grammar")).param == "grammar"


def test_ready_grammars() -> None:
    def ready(text: str) -> GrammarSpec:
        return GrammarSpec(GrammarKind.LLGUIDANCE, text, param="tools")

    made = grammar(
        ready(
            '{"grammars": [{"lark_grammar": "start: \\"<\\" @body \\">\\""}, {"name": "body", "json_schema": {"type": "boolean"}}]}'  # noqa: E501
        )
    )
    assert takes(made, "<true>", TOKENIZER)
    for text in (
        "",
        "{",
        "[]",
        "{}",
        '{"grammars": []}',
        '{"grammars": [3]}',
        '{"grammars": 3}',
        "[" * 100_000,
    ):
        assert refusal(ready(text)).param == "tools"


THINK = Marker("<think>"), Marker("</think>")


def behind(preface: Preface) -> GrammarSpec:
    return regex("[0-9]{2}").after(preface)


def test_text_before_the_answer() -> None:
    opens, closes = THINK
    optional = grammar(behind(Preface(closes, opens)))
    required = grammar(behind(Preface(closes, opens, required=True)))
    inside = grammar(behind(Preface(closes)))
    whole, rest = "<think>1 < 2, </thin\n\n</think>\n\n42", "1 < 2</think>42"
    assert [takes(made, whole, TOKENIZER) for made in (optional, required, inside)] == [True, True, True]
    assert [takes(made, rest, TOKENIZER) for made in (optional, required, inside)] == [False, False, True]
    assert [takes(made, "42", TOKENIZER) for made in (optional, required, inside)] == [True, False, False]
    assert not takes(optional, "<think>x</think>4", TOKENIZER)
    assert not takes(inside, "x</think>no", TOKENIZER)


def test_control_tokens_as_marks() -> None:
    opens, closes = Marker("<|im_start|>", START), Marker("<|im_end|>", 256)
    made = grammar(behind(Preface(closes, opens)))
    text, answer = TOKENIZER.encode("hm <|x|> "), TOKENIZER.encode("42")
    assert accepts_ids(made, [START, *text, 256, *answer])
    assert accepts_ids(made, answer)
    assert not accepts_ids(made, [START, *text, *answer])
    assert not accepts_ids(made, [START, *text, START, 256, *answer])


def test_free_text_is_bounded() -> None:
    made = grammar(behind(Preface(Marker("<pad>", 256), max_tokens=5)))
    answer = TOKENIZER.encode("42")
    assert accepts_ids(made, [*TOKENIZER.encode("abcd"), 256, *answer])
    assert not accepts_ids(made, [*TOKENIZER.encode("abcdefgh"), 256, *answer])
    assert "control token" in str(refusal(behind(Preface(Marker("</think>"), max_tokens=5))))
