"""Graders over HTTP, as OpenAI's client runs and checks them; judges are models of this server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from manylora.adapters.grading.formula import MAX_FORMULA
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tenants import ADMIN, bearer, tenant_key

pytestmark = pytest.mark.slow

CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "capital",
    "input": "{{sample.output_text}}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
ALIKE: dict[str, Any] = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_1",
}
JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "tiny",
    "input": [
        {"role": "system", "content": "You grade."},
        {"role": "user", "content": [{"type": "input_text", "text": "How good is {{sample.output_text}}?"}]},
    ],
    "sampling_params": {"max_completions_tokens": 200, "seed": 1, "temperature": 0.5, "top_p": 0.9},
}
MISSING: dict[str, Any] = {**CHECK, "reference": "{{item.none}}"}
MULTI: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {"check": CHECK, "alike": ALIKE},
    "calculate_output": "0.25 * check + 0.75 * alike",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), admin_api_key=[ADMIN])
    with serving(service) as server:
        yield server


@pytest.fixture
def graders(running: Running) -> Any:
    return running.client().fine_tuning.alpha.graders


def run(graders: Any, grader: Any, sample: str = "It is Paris", **item: Any) -> Any:
    return graders.run(grader=grader, model_sample=sample, item={"answer": "It is Paris", **item})


@pytest.mark.parametrize(
    ("operation", "sample", "answer", "reward"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "paris", "Paris", 0),
        ("ne", "paris", "Paris", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "Paris", "It is Paris.", 0),
        ("like", "It is paris.", "Paris", 0),
        ("ilike", "IT IS PARIS", "Paris", 1),
        ("ilike", "London", "Paris", 0),
        ("eq", "{{item.answer}}", "{{item.answer}}", 1),
    ],
)
def test_string_check(graders: Any, operation: str, sample: str, answer: str, reward: float) -> None:
    told = run(graders, {**CHECK, "operation": operation}, sample, answer=answer)
    assert told.reward == reward
    assert told.sub_rewards == {}
    assert told.metadata.scores == {"capital": reward}
    assert (told.metadata.name, told.metadata.type) == ("capital", "string_check")
    assert told.metadata.token_usage is None
    assert told.metadata.execution_time >= 0
    assert not any(value for name, value in told.metadata.errors.to_dict().items())


@pytest.mark.parametrize(
    "metric",
    [
        "fuzzy_match",
        "bleu",
        "gleu",
        "cosine",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ],
)
def test_text_similarity(graders: Any, metric: str) -> None:
    answer = "one two three four five six"
    same = run(graders, {**ALIKE, "evaluation_metric": metric}, answer, answer=answer)
    assert same.reward == pytest.approx(1, abs=1e-5)
    other = run(graders, {**ALIKE, "evaluation_metric": metric}, "seven eight", answer=answer)
    assert 0 <= other.reward < 0.999


def test_multi_computes_with_the_others(graders: Any) -> None:
    told = run(graders, MULTI, "It is London")
    assert told.sub_rewards == {"check": 0, "alike": pytest.approx(2 / 3)}
    assert told.reward == pytest.approx(0.5)
    assert told.metadata.scores == told.sub_rewards
    single = run(graders, {**MULTI, "graders": CHECK, "calculate_output": "1 - capital"})
    assert single.reward == 0


def test_a_model_judges(graders: Any) -> None:
    told = run(graders, JUDGE)
    assert told.metadata.sampled_model_name == "tiny"
    assert told.metadata.token_usage > 0
    usage = told.api_model_grader_token_usage_per_model["tiny"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    failed = told.metadata.errors.api_model_grader_parse_error
    assert failed or 0 <= told.reward <= 1
    told = run(graders, {**MULTI, "graders": {"a": JUDGE, "b": JUDGE}, "calculate_output": "a + b"})
    assert told.api_model_grader_token_usage_per_model["tiny"]["total_tokens"] == 2 * usage["total_tokens"]


@pytest.mark.parametrize(("low", "high"), [(1, 1.5), (-3, -2), (5, 7)])
def test_a_judges_number_is_in_its_range(graders: Any, low: float, high: float) -> None:
    judge = {**JUDGE, "range": [low, high]}
    told = run(graders, judge)
    assert told.metadata.errors.api_model_grader_parse_error or low <= told.reward <= high


def test_a_judge_that_says_no_number_is_told(graders: Any) -> None:
    told = run(graders, {**JUDGE, "sampling_params": {"max_completions_tokens": 1}})
    assert told.metadata.errors.api_model_grader_parse_error
    assert told.reward == 0


@pytest.mark.parametrize(
    ("grader", "sample", "error"),
    [
        (MISSING, "a", "invalid_variable_error"),
        ({**CHECK, "input": "{{sample.output_json.x}}"}, "no json", "sample_parse_error"),
        ({**CHECK, "input": "{{sample.output_json.x}}"}, '{"y": 1}', "invalid_variable_error"),
        ({**MULTI, "calculate_output": "check / (alike - alike)"}, "a", "formula_parse_error"),
        ({**MULTI, "graders": {"a": MISSING}, "calculate_output": "1 - a"}, "a", "invalid_variable_error"),
        (ALIKE, "x" * 40_000, "invalid_variable_error"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_and_earns_nothing(
    graders: Any, grader: Any, sample: str, error: str
) -> None:
    told = run(graders, grader, sample)
    errors = {name: value for name, value in told.metadata.errors.to_dict().items() if value is True}
    assert errors == {error: True}
    assert told.reward == 0


def test_json_of_the_answer_can_be_read(graders: Any) -> None:
    grader = {**CHECK, "input": "{{sample.output_json.city}}", "reference": "Paris"}
    assert run(graders, grader, '{"city": "Paris"}').reward == 1


def deep(levels: int) -> Any:
    value: Any = CHECK
    for _ in range(levels):
        value = {**MULTI, "graders": {"a": value}, "calculate_output": "a"}
    return value


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({}, "type"),
        ({"type": "other"}, "type"),
        ({"type": ["multi"]}, "type"),
        ({"type": "python", "name": "a", "source": "1"}, "type"),
        ({"type": "label_model"}, "type"),
        ({**ALIKE, "evaluation_metric": "meteor"}, "evaluation_metric"),
        ({**ALIKE, "evaluation_metric": "rouge_9"}, "evaluation_metric"),
        ({**CHECK, "operation": "regex"}, "operation"),
        ({**CHECK, "colour": "red"}, "colour"),
        ({key: value for key, value in CHECK.items() if key != "reference"}, "reference"),
        ({**CHECK, "input": 3}, "input"),
        ({**CHECK, "input": "{{item}}"}, "input"),
        ({**CHECK, "input": "{{" * 30_000}, "input"),
        ({**CHECK, "input": "x" * 70_000}, "input"),
        ({**JUDGE, "input": []}, "input"),
        ({**JUDGE, "input": [{"role": "tool", "content": "a"}]}, "input.0.role"),
        (
            {**JUDGE, "input": [{"role": "user", "content": {"type": "input_image", "image_url": "a"}}]},
            "input.0",
        ),
        ({**JUDGE, "input": [{"role": "user", "content": "{{x.y}}"}]}, "input[0].content"),
        ({**JUDGE, "range": [1, 1]}, "range"),
        ({**JUDGE, "range": [0]}, "range"),
        ({**JUDGE, "sampling_params": {"temperature": 3}}, "sampling_params.temperature"),
        ({**JUDGE, "sampling_params": {"max_tokens": 3}}, "sampling_params.max_tokens"),
        ({**MULTI, "graders": {}}, "graders"),
        ({**MULTI, "graders": {f"g{n}": CHECK for n in range(17)}}, "graders"),
        ({**MULTI, "graders": {"a-b": CHECK}}, "graders"),
        ({**MULTI, "graders": {"min": CHECK}}, "graders"),
        ({**MULTI, "graders": {"a": MULTI}}, "graders.a.type"),
        (deep(200), "graders.a.type"),
        ({**MULTI, "graders": {"a": {"type": "python"}}}, "graders.a.type"),
        ({**MULTI, "calculate_output": "__import__('os')"}, "calculate_output"),
        ({**MULTI, "calculate_output": "check + other"}, "calculate_output"),
        ({**MULTI, "calculate_output": "(" * 2000 + "check"}, "calculate_output"),
        ({**MULTI, "calculate_output": "check+" * MAX_FORMULA}, "calculate_output"),
    ],
)
def test_graders_that_can_not_be_are_refused_by_name(graders: Any, grader: Any, param: str) -> None:
    began = time.monotonic()
    for ask in (graders.validate, lambda grader: run(graders, grader)):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(grader=grader)
        assert refused.value.param is not None
        assert refused.value.param.startswith(f"grader.{param}")
        assert refused.value.code == "invalid_grader"
    assert time.monotonic() - began < 20  # far less without load


@pytest.mark.parametrize("grader", [CHECK, ALIKE, JUDGE, MULTI])
def test_right_ones_are_shown(graders: Any, grader: Any) -> None:
    assert graders.validate(grader=grader).grader.name == grader["name"]
    told = graders.with_raw_response.validate(
        grader=grader
    )  # the client's type of a multi grader is not its own
    assert told.http_response.json() == {"grader": grader}


def test_a_judge_that_is_not_there_is_refused(graders: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="nobody") as refused:
        run(graders, {**JUDGE, "model": "nobody"})
    assert refused.value.param == "grader.model"
    with pytest.raises(openai.BadRequestError) as refused:
        run(graders, {**MULTI, "graders": {"a": {**JUDGE, "model": "a+"}}, "calculate_output": "a"})
    assert refused.value.param == "grader.graders.a.model"


def test_judges_are_asked_as_the_caller(running: Running) -> None:
    with running.http() as http:
        key = tenant_key(http, "acme", base=False)
        graders = running.client(api_key=key).fine_tuning.alpha.graders
        assert run(graders, CHECK).reward == 1
        with pytest.raises(openai.BadRequestError) as refused:
            run(graders, JUDGE)
        assert refused.value.param == "grader.model"
        limited = tenant_key(http, "globex", limits={"requests_per_minute": 1})
        graders = running.client(api_key=limited).fine_tuning.alpha.graders
        first, second = run(graders, JUDGE), run(graders, JUDGE)
        assert not first.metadata.errors.api_model_grader_server_error
        assert second.metadata.errors.api_model_grader_server_error
        assert second.metadata.errors.api_model_grader_server_error_details
        for name in ("acme", "globex"):
            http.delete(f"/v1/tenants/{name}", headers=bearer(ADMIN))
