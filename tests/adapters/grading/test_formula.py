"""Formulas over grades: computed as mathematics has it, and nothing else."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.grading.formula import FUNCTIONS, FormulaFault, is_variable, parse_formula

GRADES = {"a": 0.5, "b": 2.0, "style_2": -1.0}


def compute(text: str) -> float:
    return parse_formula(text, GRADES.keys())(GRADES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 / 4 / 2", 1),
        ("5 - 3 - 1", 1),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("2 ^ -1", 0.5),
        ("--a", 0.5),
        ("-+-a", 0.5),
        ("0.7*a+0.3*b", 0.95),
        (".5 * 1e1", 5),
        ("min(a, b, style_2)", -1),
        ("max(a, b)", 2),
        ("min(a)", 0.5),
        ("abs(style_2) + floor(1.7) + ceil(1.2)", 4),
        ("exp(0) + sqrt(9) + log(1)", 4),
        (" ( ( a ) ) ", 0.5),
        ("+".join(["a"] * 900), 450),
    ],
)
def test_values(text: str, value: float) -> None:
    assert compute(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "a +", "* a", "(a", "a)", "min()", "min(a", "abs(a, b)", "sqrt", "c", "a.b", "a[0]",
        "a ** 2", "a ^", "__import__('os')", "().__class__", "a if a else b", "lambda: a", "a; b", "a = 1",
        "a < b", "1 2", "1..2", "\N{ARABIC-INDIC DIGIT ONE}", "exec(a)", "print(a)", "1 / 0", "a / (a - a)",
        "log(0)", "log(-1)", "sqrt(-1)", "exp(1000)", "9 ^ 999", "(-1) ^ 0.5", "1e999", "0 ^ -1",
        "1e308 * 10",
        "(" * 1000 + "a" + ")" * 1000, "2" + "^2" * 500, "min(" * 200 + "a" + ")" * 200, "a+" * 3000 + "a",
        "min(" + ",".join(["a"] * 100) + ")", "{{item.a}}", "\x00", "a\u2028+b(",
    ],
)  # fmt: skip
def test_what_is_no_formula_or_has_no_value(text: str) -> None:
    with pytest.raises(FormulaFault):
        compute(text)


_TREES = st.recursive(
    st.sampled_from(["a", "b", "style_2"]) | st.floats(0, 9).map(lambda x: f"{x:.3f}"),
    lambda each: st.one_of(
        st.tuples(each, st.sampled_from("+-*"), each).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(each, st.sampled_from("+-*"), each).map(lambda t: f"{t[0]} {t[1]} {t[2]}"),
        each.map(lambda text: f"-({text})"),
        st.tuples(st.sampled_from(["min", "max"]), each, each).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        each.map(lambda text: f"abs({text})"),
    ),
    max_leaves=12,
)


@given(_TREES)
def test_as_python_computes_it(text: str) -> None:
    wanted = eval(text, {"__builtins__": {}, "min": min, "max": max, "abs": abs}, GRADES)
    assert compute(text) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(st.text(alphabet="ab12.+-*/^(), e_minsqrt\n", max_size=60))
def test_any_text_is_a_finite_number_or_a_fault(text: str) -> None:
    with contextlib.suppress(FormulaFault):
        assert math.isfinite(compute(text))


def test_names_of_grades() -> None:
    assert all(map(is_variable, ("a", "_", "A1_b")))
    assert not any(map(is_variable, ("", "1a", "a-b", "a b", "ä", "x" * 65, *FUNCTIONS)))
