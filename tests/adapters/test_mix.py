"""The mix grammar, its round trip, and its algebra."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.errors import AdapterNameError, MixError
from manylora.adapters.mix import (
    MAX_ENTRIES,
    MixEntry,
    MixTerm,
    check_name,
    check_weight,
    format_mix,
    mix_digest,
    normalize,
    parse_mix,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
weights = st.floats(-8, 8, allow_nan=False)
revisions = st.none() | st.from_regex(r"[0-9a-f]{4,64}", fullmatch=True)
terms = st.builds(MixTerm, names, revisions, weights, st.booleans())
entries = st.lists(st.builds(MixEntry, st.sampled_from(["aa", "bb", "cc"]), weights), max_size=8)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("support", [MixTerm("support")]),
        ("support@3f9a1c2e", [MixTerm("support", "3f9a1c2e")]),
        ("support@merged", [MixTerm("support", merged=True)]),
        ("support@3f9a1c2e.merged", [MixTerm("support", "3f9a1c2e", merged=True)]),
        ("support*0.5", [MixTerm("support", None, 0.5)]),
        ("a*0", [MixTerm("a", None, 0.0)]),
        ("a*.5+b*2.", [MixTerm("a", None, 0.5), MixTerm("b", None, 2.0)]),
        ("a*0.7+legal*-0.3", [MixTerm("a", None, 0.7), MixTerm("legal", None, -0.3)]),
        ("a@merged*0.25+b", [MixTerm("a", None, 0.25, merged=True), MixTerm("b")]),
        ("a*1e-3", [MixTerm("a", None, 0.001)]),
        ("a*1e0", [MixTerm("a", None, 1.0)]),
        ("org.model:v1-2*8", [MixTerm("org.model:v1-2", None, 8.0)]),
        ("+".join(["a"] * MAX_ENTRIES), [MixTerm("a")] * MAX_ENTRIES),
    ],
)
def test_expressions(expression: str, expected: list[MixTerm]) -> None:
    assert parse_mix(expression) == tuple(expected)


@pytest.mark.parametrize(
    "expression",
    [
        "a*", "a*x", "a*0.5*2", "a*nan", "a*inf", "a*-inf", "a*8.01", "a*1e1", "a*1e400", "a*1_0", "a* 1",
        "a*٣", "a*0x1", "a*--1", "a*1e", "a*.", "a@", "a@xyz", "a@3F9A", "a@abc", "a@merged@merged",
        "a@.merged", "a@3f9a.merge",
        "a*1e+0", "a*+1", "+".join(["a"] * (MAX_ENTRIES + 1)), "+" * 1_000_000,
    ],
)  # fmt: skip
def test_malformed_mixes(expression: str) -> None:
    with pytest.raises((MixError, AdapterNameError)) as error:
        parse_mix(expression)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "-a",
        "_a",
        "a b",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "../etc",
        "a\0",
        "a\n",
        "\u0301",
        "😀",
        "a" * 129,
        "a+b",
        "a*b",
        "a@b",
        "\ud800",
    ],
)
def test_hostile_names(name: str) -> None:
    with pytest.raises(AdapterNameError) as error:
        check_name(name)
    str(error.value).encode()  # can be put into an answer
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["a", "A" * 128, "0", "lora", "base_model", "a..b", "x:y", "1-2_3"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("+lora", "'+lora': entry 1 of 2 is empty"),
        ("a++b", "'a++b': entry 2 of 3 is empty"),
        ("a*0.5+", "'a*0.5+': entry 2 of 2 is empty"),
        ("@merged", "'@merged': before '@' comes the name of an adapter"),
        ("a+*0.5", "'*0.5': before '*' comes the name of an adapter"),
    ],
)
def test_what_is_missing_is_said(expression: str, said: str) -> None:
    with pytest.raises(MixError) as error:
        parse_mix(expression)
    assert str(error.value).startswith(said)


def test_a_plus_sign_always_separates() -> None:
    with pytest.raises(MixError, match="without a plus sign"):
        parse_mix("a*1e+2")


def test_control_characters_are_escaped_in_messages() -> None:
    with pytest.raises(MixError) as error:
        parse_mix("a*\x1b[31m\n")
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 8.5, -9, 10**400])
def test_weights_out_of_bounds(weight: float) -> None:
    with pytest.raises(MixError, match="weight of x"):
        check_weight(weight, "x")


@pytest.mark.slow
@given(st.lists(terms, min_size=1, max_size=MAX_ENTRIES))
def test_round_trip(mix: list[MixTerm]) -> None:
    assert parse_mix(format_mix(mix)) == tuple(mix)


def test_the_base_is_the_empty_expression() -> None:
    assert format_mix([]) == ""
    assert mix_digest([]) == b""


@given(st.text(max_size=60))
def test_anything_else_is_one_of_two_errors(text: str) -> None:
    try:
        parsed = parse_mix(text)
    except (MixError, AdapterNameError):
        return
    assert parse_mix(format_mix(parsed)) == parsed


@pytest.mark.slow
@given(entries, st.randoms(use_true_random=False))
def test_order_does_not_matter(mix: list[MixEntry], generator: random.Random) -> None:
    shuffled = generator.sample(mix, len(mix))
    assert normalize(shuffled) == normalize(mix)
    assert mix_digest(shuffled) == mix_digest(mix)


@given(entries)
def test_normal_form(mix: list[MixEntry]) -> None:
    normal = normalize(mix)
    assert normalize(normal) == normal
    assert [entry.digest for entry in normal] == sorted({entry.digest for entry in normal})
    assert all(entry.weight != 0 for entry in normal)


@given(entries, st.sampled_from(["aa", "dd"]))
def test_weight_zero_is_absence(mix: list[MixEntry], digest: str) -> None:
    assert normalize([*mix, MixEntry(digest, 0.0)]) == normalize(mix)
    assert normalize([*mix, MixEntry(digest, -0.0)]) == normalize(mix)


@given(entries)
def test_a_mix_minus_itself_is_the_base(mix: list[MixEntry]) -> None:
    assert normalize([*mix, *(MixEntry(entry.digest, -entry.weight) for entry in mix)]) == ()


@given(entries, entries)
def test_digests_tell_models_apart(one: list[MixEntry], other: list[MixEntry]) -> None:
    assert (mix_digest(one) == mix_digest(other)) == (normalize(one) == normalize(other))


def test_equal_members_add_up_without_rounding_on_the_way() -> None:
    tenths = [MixEntry("aa", 0.1), MixEntry("aa", 0.2), MixEntry("aa", 0.3)]
    assert normalize(tenths) == normalize(reversed(tenths)) == (MixEntry("aa", 0.6),)
