"""Texts of flags, variables and files become values: sizes, lists, pairs; what they can't be is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.options.values import (
    format_size,
    parse_list,
    parse_named_paths,
    parse_pattern_numbers,
    parse_size,
    split_list,
    wrap_text,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        (" 2GiB ", 2 << 30),
        ("512mib", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("2 kb", 2000),
        ("0.5KiB", 512),
        ("3b", 3),
        (4096, 4096),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e9", "2 GiBs", "0.3", "1/2", "nan", None, True, 1.5, "9" * 19]
)
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"must be a (size|whole number)"):
        parse_size(text)


@given(st.integers(0, 2**50), st.sampled_from(["", "B", "KiB", "MiB", "GiB", "TiB"]))
def test_sizes_are_exact(number: int, unit: str) -> None:
    power = ["", "KiB", "MiB", "GiB", "TiB"].index(unit.removeprefix("B"))
    assert parse_size(f"{number}{unit}") == number * 1024**power
    assert parse_size(format_size(number)) == number


def test_lists_and_pairs_accept_json() -> None:
    assert parse_list('["a,b", "c"]') == ["a,b", "c"]
    assert parse_list(" a, b ,") == ["a", "b"]
    assert parse_named_paths('{"a": "x,y"}') == {"a": "x,y"}
    assert parse_named_paths("a=x=y,b=z") == {"a": "x=y", "b": "z"}
    with pytest.raises(ValueError, match="not valid JSON"):
        parse_named_paths("{")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("a, b ,", ["a", "b"]),
        (["a,b", "c"], ["a", "b", "c"]),
        (("a", 3), ["a", 3]),
        ({"a": 1}, {"a": 1}),
        (None, None),
    ],
)
def test_each_text_of_a_list_of_names_is_cut_at_its_commas(value: object, parts: object) -> None:
    assert split_list(value) == parts


def test_commas_of_texts_mean_nothing() -> None:
    assert wrap_text("One, two") == ["One, two"]
    assert wrap_text(["One, two", "three"]) == ["One, two", "three"]


def test_numbers_by_pattern() -> None:
    assert parse_pattern_numbers(["a=b=4,c=5", "d=6"]) == {"a=b": "4", "c": "5", "d": "6"}
    assert parse_pattern_numbers({"a": 4}) == {"a": 4}


@pytest.mark.parametrize("entry", ["a", "=4", "a="])
def test_pairs_have_both_sides(entry: str) -> None:
    with pytest.raises(ValueError, match=f"must be PATTERN=NUMBER, not '{entry}'"):
        parse_pattern_numbers(["b=1", entry])
    with pytest.raises(ValueError, match=f"must be NAME=PATH, not '{entry}'"):
        parse_named_paths(["b=1", entry])


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'a' is given twice"):
        parse_pattern_numbers("a=1,a=2")
