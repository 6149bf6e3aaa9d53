"""Untrusted patterns: PEFT's meaning, in bounded time."""

from __future__ import annotations

import re
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from manylora.adapters.format.config.patterns import (
    Deadline,
    Pattern,
    PatternFault,
    assign,
    block_index,
    select,
)

NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 10)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.3.up_proj")
]
single = st.sampled_from(
    ["a", ".", r"\.", r"\d", r"\w", "[ab]", "[^.]", "[a-z_]", "q_proj", "layers", "mlp", "0", "^", "$", r"\b"]
)
quantified = st.builds("(?:{}){}".format, single, st.sampled_from(["?", "*", "+", "*?", "{1,}", "{2}"]))
# Repeats are never nested, and few: this is also run by Python's engine, which would not come back.
expressions = st.recursive(
    single | quantified,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        inner.map("({})?".format),
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(expressions)
def test_both_engines_agree(expression: str) -> None:
    """Lists, alternatives, classes and repeats, against the engine that PEFT uses."""
    pattern = Pattern(expression)
    for name in ("model.layers.0.mlp", "q_proj", "a.0.x", ""):
        assert pattern.matches(name) == bool(re.fullmatch(expression, name)), name


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(expressions, st.sampled_from(NAMES), st.just("mlp.up_proj")), max_size=4, unique=True)
)
def test_assignment_is_pefts(patterns: list[str]) -> None:
    assigned = assign(patterns, NAMES, Deadline(60))
    for name in NAMES:
        key = get_pattern_key(patterns, name)
        assert assigned.get(name) == (key if key in patterns else None)


def test_the_dots_of_a_plain_pattern_stand_for_anything() -> None:
    names = ["a.b.c", "aXbXc", "z.a-b.c", "za.b.c"]
    assert assign(["a.b.c"], names, Deadline()) == dict.fromkeys(["a.b.c", "aXbXc", "z.a-b.c"], "a.b.c")


@pytest.mark.parametrize(
    "expression",
    [
        "(a|a)*b", "(.*)*x", "(?:(?:.?){20}){20}[A-Z]", "([a-z._0-9]+)+[A-Z]", ".*" * 200 + "[A-Z]",
        r"(a?){9}" * 50 + "a" * 450,
    ],
)  # fmt: skip
def test_patterns_that_hang_other_engines(expression: str) -> None:
    started = monotonic()
    assert select(expression, [name * 3 for name in NAMES], Deadline()) == frozenset()
    assert monotonic() - started < 5


@pytest.mark.parametrize(
    "expression",
    [
        "(", "[", "*", r"(a)\1", "(?=a)b", "(?!a)b", "(?<=a)b", "(?<!a)b", "((a{100}){100}){100}",
        "(" * 3000, "a" * 5000, "[[a]", "[a&&b]", "[a--b]", "[[:alpha:]]", r"\p{", "(?P<a>x)(?P<a>y)",
    ],
)  # fmt: skip
def test_patterns_that_are_refused(expression: str) -> None:
    with pytest.raises(PatternFault) as fault:
        Pattern(expression)
    assert len(str(fault.value)) < 500


def test_the_time_of_one_config_is_bounded() -> None:
    with pytest.raises(PatternFault, match="too long"):
        assign([f"x{i}.*" for i in range(100_000)], NAMES, Deadline(0.05))


@pytest.mark.parametrize(
    ("name", "patterns", "index"),
    [
        ("model.layers.7.mlp.up", (), 7),
        ("model.layers.7.experts.3.up", (), 7),
        ("layers.7.up", (), None),  # PEFT wants two components before the number
        ("layers.7.up", ("layers",), 7),
        ("model.layers.7.up", ("h", "layers"), 7),
        ("transformer.h.2.attn", ("layers",), None),
        ("model.norm", (), None),
    ],
)
def test_block_index(name: str, patterns: tuple[str, ...], index: int | None) -> None:
    assert block_index(name, patterns) == index


def test_layers_pattern_is_a_name() -> None:
    with pytest.raises(PatternFault, match="list of blocks"):
        block_index("model.layers.7.up", ("(.*)*",))
