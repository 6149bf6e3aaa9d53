"""Templates of graders: paths into values, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.grading.templates import (
    MAX_RENDERED,
    MAX_TEMPLATE,
    TemplateFault,
    VariableMissing,
    check_template,
    render,
)

VALUES: dict[str, Any] = {
    "item": {"a": "x", "n": 3, "none": None, "rows": [{"b": "y"}, [1, 2]], "a key": "k", "own": "{{item.a}}"},
    "sample": {"output_text": "hi", "output_json": {"score": 0.5}},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain } text {", "plain } text {"),
        ("{{item.a}}", "x"),
        ("{{ item.a }}-{{sample.output_text}}", "x-hi"),
        ("{{item.n}} {{item.none}}", "3 null"),
        ("{{item.rows[0].b}}{{item.rows[1][1]}}", "y2"),
        ("{{item.rows[1]}}", "[1, 2]"),
        ("{{item['a key']}}{{item[\"a key\"]}}", "kk"),
        ("{{sample.output_json.score}}", "0.5"),
        ("{{item.own}}", "{{item.a}}"),
        ("{{{item.a}}}", "{x}"),
    ],
)
def test_what_it_stands_for(template: str, text: str) -> None:
    check_template(template)
    assert render(template, VALUES) == text


@pytest.mark.parametrize(
    "template",
    ["{{", "{{item.a", "{{}}", "{{item}}", "{{other.a}}", "{{a}}", "{{item.a b}}", "{{item.a|upper}}",
     "{{item.a()}}", "{{item.}}", "{{item[-1]}}", "{{item[0}}", "{{item.__class__.}}", "{{1+1}}",
     "{{item.a}} {{", "x" * (MAX_TEMPLATE + 1), "{{item" + ".a" * 40 + "}}",
     "{{items.a}}", "{{item.\N{KELVIN SIGN}}}"],
)  # fmt: skip
def test_malformed_ones_are_refused(template: str) -> None:
    with pytest.raises(TemplateFault):
        check_template(template)


@pytest.mark.parametrize(
    "template",
    ["{{item.b}}", "{{item.rows[7]}}", "{{item.a.b}}", "{{item.a[0]}}", "{{item.n.real}}", "{{item.rows.b}}",
     "{{item.__class__}}", "{{item[0]}}", "{{item.none.x}}", "{{sample.choices}}"],
)  # fmt: skip
def test_what_is_not_there(template: str) -> None:
    check_template(template)
    with pytest.raises(VariableMissing):
        render(template, VALUES)


def test_bombs_are_refused_at_once() -> None:
    began = time.process_time()
    values = {"item": {"big": "x" * MAX_RENDERED}, "sample": {}}
    template = "{{item.big}}" * (MAX_TEMPLATE // 12)
    check_template(template)
    with pytest.raises(VariableMissing, match="more than"):
        render(template, values)
    with pytest.raises(TemplateFault):
        check_template("{{" * (MAX_TEMPLATE // 2))
    with pytest.raises(TemplateFault):
        check_template("{{item.a" * (MAX_TEMPLATE // 8))
    with pytest.raises(TemplateFault):
        check_template("{{item" + "['" * (MAX_TEMPLATE // 2 - 8) + "}}")
    assert time.process_time() - began < 3


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.text(max_size=8), max_size=4), st.text()
)
def test_values_are_text_however_they_look(item: dict[str, str], around: str) -> None:
    around = around.replace("{", "(")
    template = around.join(f"{{{{item.{name}}}}}" for name in item)
    check_template(template)
    assert render(template, {"item": item, "sample": {}}) == around.join(item.values())


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3), lambda e: st.lists(e, max_size=3), max_leaves=9
    )
)
def test_what_is_no_text_is_json(value: Any) -> None:
    told = render("{{item.v}}", {"item": {"v": value}, "sample": {}})
    assert told == (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
