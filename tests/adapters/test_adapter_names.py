"""Adapter names: those that people have are taken, in one spelling; hostile ones never are."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from manylora.adapters.errors import AdapterNameError, MixError
from manylora.adapters.mix import (
    MAX_NAME,
    ROUTE_WORDS,
    MixTerm,
    check_name,
    format_mix,
    is_name,
    normal_name,
    parse_mix,
)

LETTERS = st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo", "Nd"])
REST = st.text(LETTERS | st.characters(categories=["Mn", "Mc"]) | st.sampled_from("._:-"), max_size=12)
PARTS = st.builds(lambda first, rest: first + rest, LETTERS, REST)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize(
    "name",
    [
        "support", "org/adapter", "org/team/adapter-v1.2", "unsloth/Llama-3.2:latest", "9", "0/1",
        "Übersetzer", "日本語", "поддержка", "दुकान", "ไทย", "한국어", "عربي", "a" * MAX_NAME, "merge",
        "org/merge-v2", "merge/org", "a.b/c_d",
    ],
)  # fmt: skip
def test_names_that_people_have(name: str) -> None:
    assert check_name(name) == name
    assert parse_mix(f"{name}*0.5+b@3f9a1c2e") == (MixTerm(name, None, 0.5), MixTerm("b", "3f9a1c2e"))


HOSTILE = [
    "", ".", "..", "/", "//", "a/", "/a", "a//b", "a/..", "../a", "a/../b", "a/./b", "a/.b", ".a",
    "-a", "a/-b",
    "a b", "a\tb", "a\n", "\na", "a\0b", "a\rb", "a\x7f", "a\u0085b", "a\\b", "a\\..\\b", "a%2fb",
    "a%", "a?b",
    "a#b", "a&b", "a=b", "a;b", "a,b", "a'b", 'a"b', "a<b", "a|b", "a~b", "a$b", "a`b", "a(b",
    "a{b}", "~a", "a!",
    "a\u202eb", "a\u2066b", "a\u200fb", "a\u200bb", "a\u200db", "a\ufeffb", "\ufeffa", "a\u00adb", "a\u2060b",
    "a\u034fb", "a\ufe0fb", "\u3164", "a\u3164", "\u115f", "\uffa0", "a\U000e0101", "a\U000e0041", "\u0301a",
    "a\u2044b", "a\u2215b", "a\uff0fb", "a\u29f8b", "a\u2024b", "a\uff0eb", "\uff0e\uff0e",
    "a\ufe56", "a\uff0b",
    "a\u2217b", "a\uff20b", "\ud800", "a\udfff", "a\ue000", "a\u0378", "😀", "a\u20dd", "½", "a²", "ⅷ",
    "a" * (MAX_NAME + 1), "é" * (MAX_NAME + 1), "a" * 10**6, "\u0301" * 10**6,
    *(f"org/{word}" for word in ROUTE_WORDS),
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_hostile_names(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(AdapterNameError) as refused:
        check_name(name)
    assert str(refused.value).isascii()  # nothing that turns a terminal's text around
    assert len(str(refused.value)) < 2000
    with pytest.raises((AdapterNameError, MixError)):
        parse_mix(f"{name}*0.5")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("U\u0308bersetzer", "Übersetzer"),
        ("org/cafe\u0301", "org/café"),
        ("\u212b", "Å"),
        ("\u212aelvin", "Kelvin"),
        ("\u1112\u1161\u11ab", "한"),
    ],
)
def test_two_spellings_are_one_name(written: str, name: str) -> None:
    assert check_name(written) == name
    assert parse_mix(written) == parse_mix(name)
    assert not is_name(written)  # what stores names knows one spelling


@given(NAMES)
def test_every_name_survives_what_is_done_to_it(text: str) -> None:
    name = normal_name(text)
    assume(is_name(name))
    assert check_name(text) == check_name(name) == name
    assert unquote(quote(name, safe="")) == name
    assert parse_mix(format_mix([MixTerm(name, "3f9a", 0.25, True)])) == (MixTerm(name, "3f9a", 0.25, True),)
    assert not set(PurePosixPath(name).parts) & {"..", ".", "/"}
    assert not set(name) & set("+*@\\%?# \0")


@given(st.text(max_size=MAX_NAME + 2))
def test_whatever_is_a_name_shows_and_stays_itself(text: str) -> None:
    if is_name(text):
        assert unicodedata.normalize("NFC", text) == text
        assert text.isprintable()
        assert all(part[0].isalnum() for part in text.split("/"))
