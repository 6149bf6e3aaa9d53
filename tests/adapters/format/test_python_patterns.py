"""Regular expressions as people write them select what PEFT selects; hostile ones lose their own load."""

from __future__ import annotations

import re
from time import monotonic
from typing import Any

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from manylora.adapters.bounded_process import Bounds
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.patterns import Deadline, PatternFault, assign, select, simple_pattern
from manylora.adapters.format.config.targets import select_targets
from manylora.adapters.format.faults import Faults
from tests.support.adapters import lora_config
from tests.support.artifact_cases import BASE

pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # of Python about "[[" and "&&"

NAMES = [*BASE.modules]
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    r".*?(?:q_proj|v_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)?"
    r"\.?(?:(?:q_proj|v_proj|up_proj)))"
)
EXPRESSIONS = [
    UNSLOTH,
    r"^(?!.*(vision|visual)).*(q_proj|v_proj)$",
    r".*(?<!up)_proj",
    r"(?!.*up_proj).*layers\.\d+\..*_proj",
    r"(?i)MODEL\.LAYERS\.\d\.Q_PROJ",
    r"(?:model\.)?layers\.(\d)\.q_proj|model\.layers\.(?P<layer>\d)\.(?P<part>v)_proj",
    r"(?P<a>m)odel\.layers\.0\.(?=q)\w+",
    r"model\.(layers)\.1\.(?!v).*",
    r".*layers\.(0|1)\.(?:q|v)_proj\Z",
    r"model\.layers\.[0-9]++\.q_proj",
    r"(?>model)\.layers\.0\.v_proj",
    r"(?#the query)model\.layers\.\d\.q_proj",
    r".*\.(\w)\w*\.\1_proj|.*q_proj",
    r"model\.layers\.\d{1, 2}\.q_proj|.*v_proj",
    r"model[.[]layers[.[]0[.[]q_proj",
    "|".join([*(re.escape(name) for name in NAMES), *(f"never{i:04}" for i in range(1200))]),
]
single = st.sampled_from(
    [
        "model", r"\.", "layers", r"\d", "q_proj", "v_proj", "_proj", ".*", ".", r"\w+", "[qv]", "[^.]*",
        "(?=q)", "(?!v)", "(?<=p)", "(?<!u)", r"\b", "^", "$", "(?i:Q)", r"(?P<n>q|v)", "a{1, 2}", "[.[]",
        r"\Z", "(?>q)", "q?+", "(", ")", "*", r"\z", r"\<", "{2}", "[a&&b]", "(?s)",
    ]
)  # fmt: skip
expressions = st.lists(single, min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from(["".join(parts), "|".join(parts), f".*(?:{'|'.join(parts)})"])
)


def selected(options: dict[str, Any]) -> set[str] | None:
    """The modules that a config selects here; None where it is refused."""
    faults = Faults()
    parsed = parse_config(lora_config(rank=4) | options, faults)
    targets = None if parsed is None else select_targets(parsed, BASE, faults)
    return None if targets is None else set(targets)


def selected_by_peft(options: dict[str, Any]) -> set[str] | None:
    """The modules that PEFT selects; None where it raises, or finds none."""
    config = peft.LoraConfig(**(lora_config(rank=4) | options))
    try:
        found = {name for name in NAMES if _is_match(check_target_module_exists(config, name))}
    except (re.error, OverflowError, RecursionError):
        return None
    return found or None


def _is_match(answer: object) -> bool:
    return answer is True or isinstance(answer, re.Match)


def fullmatch(expression: str, names: list[str]) -> set[str] | None:
    try:
        return {name for name in names if re.fullmatch(expression, name)}
    except (re.error, OverflowError, RecursionError):
        return None


def select_or_none(expression: str) -> set[str] | None:
    try:
        return set(select(expression, NAMES, Deadline(60)))
    except PatternFault:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_target_modules_select_what_peft_selects(expression: str) -> None:
    assert selected({"target_modules": expression}) == selected_by_peft({"target_modules": expression})
    assert selected({"target_modules": expression}), "the case says something"
    simple = simple_pattern(expression) is not None
    assert simple == (expression == UNSLOTH), "it is mostly the other engine that is tried here"


@pytest.mark.parametrize("expression", EXPRESSIONS[:10])
def test_excluded_modules_are_those_that_peft_excludes(expression: str) -> None:
    options = {"target_modules": ".*_proj", "exclude_modules": expression}
    assert selected(options) == selected_by_peft(options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "patterns",
    [["(?!h)layers"], ["h", "(?<=model.)layers"], "layers|h", ["(a)?layers", "layers"], [r"lay\w+?"], ["("]],
)
@pytest.mark.parametrize("layers", [0, [1], [0, 1], [7]])
def test_layers_pattern_is_an_expression_of_peft(patterns: object, layers: object) -> None:
    options = {
        "target_modules": ["q_proj", "up_proj"], "layers_pattern": patterns, "layers_to_transform": layers,
    }  # fmt: skip
    assert selected(options) == selected_by_peft(options)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(expressions)
def test_any_expression_selects_what_peft_selects(expression: str) -> None:
    """Whichever engine it goes to."""
    assert select_or_none(expression) == fullmatch(expression, NAMES)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(expressions)
def test_what_is_simple_means_the_same_in_both_engines(expression: str) -> None:
    pattern = simple_pattern(expression)
    if pattern is not None:
        for name in (*NAMES, "", "q", "model", "a", "vq_proj"):
            assert pattern.matches(name) == bool(re.fullmatch(expression, name)), name


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(expressions, st.sampled_from([*NAMES, "q_proj"])), max_size=4, unique=True))
def test_patterns_of_ranks_are_assigned_as_by_peft(patterns: list[str]) -> None:
    try:
        expected = {name: get_pattern_key(patterns, name) for name in NAMES}
    except (re.error, OverflowError, RecursionError):
        return  # PEFT stops at a broken pattern that it reaches; here every one is refused
    try:
        assigned = assign(patterns, NAMES, Deadline(60))
    except PatternFault:
        assert any(fullmatch(rf"(.*\.)?({pattern})$", ["x"]) is None for pattern in patterns)
        return
    for name, key in expected.items():
        assert assigned.get(name) == (key if key in patterns else None)


HOSTILE = [r"(?=a)?(a+)+$", r"(?=m)(.*)*x", r"((?:\w|\w\w)+)\1\d$", r"(?=m)" + ".*?" * 40 + "Q"]


@pytest.mark.slow
@pytest.mark.parametrize("expression", HOSTILE)
def test_a_catastrophic_expression_is_refused_in_time(expression: str) -> None:
    names = [*(f"{name * 8}!" for name in NAMES), "a" * 60 + "b"]
    deadline = Deadline(60, Bounds(seconds=0.5))
    started = monotonic()
    with pytest.raises(PatternFault, match="takes too long"):
        select(expression, names, deadline)
    with pytest.raises(PatternFault, match="takes too long"):
        select(".*", names, deadline)  # its config has no time left
    assert monotonic() - started < 20


@pytest.mark.slow
def test_the_other_process_is_not_started_without_end() -> None:
    large = [f"((a{{100}}){{100}}){{100}}{index}" for index in range(100)]  # simple, but too large as such
    with pytest.raises(PatternFault, match="takes too long"):
        assign(large, NAMES, Deadline(60))


def test_ranks_and_alphas_by_look_around() -> None:
    config = lora_config(rank=4, targets=["q_proj", "v_proj"], alpha=8)
    config |= {"rank_pattern": {r"(?!v)\w_proj": 2}, "alpha_pattern": {r".*1\.(?=q)q_proj": "6"}}
    faults = Faults()
    parsed = parse_config(config, faults)
    assert parsed is not None
    targets = select_targets(parsed, BASE, faults)
    assert targets is not None
    found = {name[13:]: (target.rank, target.scaling) for name, target in targets.items()}
    assert found == {
        "0.q_proj": (2, 4.0), "0.v_proj": (4, 2.0), "1.q_proj": (2, 3.0), "1.v_proj": (4, 2.0),
    }  # fmt: skip
