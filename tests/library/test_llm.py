"""``manylora.LLM``: batches in this process equal what the server answers, and PEFT's own numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import manylora
from manylora import LLM
from manylora.adapters.errors import AdapterError
from manylora.server.errors import ConfigError, RequestError
from tests.support.adapters import write_adapter
from tests.support.running_server import serving, tiny_service
from tests.support.tiny_models import tiny_model

PROMPTS = [f"Number {i}: the sea" for i in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(root / name, model, rank=4, seed=seed, targets="all-linear")
        for seed, name in enumerate(("alpha", "beta"))
    }


@pytest.fixture(scope="module")
def llm(model: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    options: dict[str, Any] = {"dtype": "fp32", "data_dir": tmp_path_factory.mktemp("data")}
    with LLM(str(model), adapters, served_model_name="tiny", adapter_memory="4MiB", **options) as opened:
        yield opened


@pytest.mark.slow
def test_answers_equal_the_servers(llm: LLM, model: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    with serving(tiny_service(model, tmp_path, adapter=adapters)) as server:
        for name in ("tiny", "alpha", "alpha*0.6+beta*0.4"):
            expected = server.client().completions.create(model=name, prompt=PROMPTS, **asked)
            found = llm.generate(PROMPTS, model=name, **asked)
            assert [answer.text for answer in found] == [choice.text for choice in expected.choices]
            assert {answer.model for answer in found} == {expected.model}
            talk: list[Any] = [{"role": "user", "content": "Hello"}]
            chat = server.client().chat.completions.create(model=name, messages=talk, **asked)
            assert llm.chat(talk, model=name, **asked)[0].text == chat.choices[0].message.content


@pytest.mark.slow
def test_one_prompt_several_prompts_and_token_ids(llm: LLM) -> None:
    one = llm.generate("Hello", max_tokens=4, temperature=0)
    assert len(one) == 1
    assert one[0].completion_tokens == 4
    assert one == llm.generate(["Hello"], max_tokens=4, temperature=0)
    ids = [1, 2, 3]
    assert llm.generate(ids, max_tokens=4, temperature=0) == llm.generate([ids], max_tokens=4, temperature=0)
    assert llm.generate([]) == []
    several = llm.generate("Hello", n=3, seed=1, max_tokens=4)
    assert len(several[0].choices) == 3


def test_conversations(llm: LLM) -> None:
    talks = [[{"role": "user", "content": text}] for text in ("Hello", "Who?")]
    both = llm.chat(talks, model="beta", max_tokens=4, temperature=0)
    assert both == [llm.chat(talk, model="beta", max_tokens=4, temperature=0)[0] for talk in talks]


def test_scores_are_pefts(llm: LLM, model: Path, adapters: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapters["alpha"]
    )
    found = llm.score(PROMPTS[:3], [" is blue", " sleeps", "!"], model="alpha")
    for prompt, completion, score in zip(PROMPTS, (" is blue", " sleeps", "!"), found, strict=False):
        before = tokenizer(prompt).input_ids
        after = tokenizer(completion, add_special_tokens=False).input_ids
        with torch.inference_mode():
            logits = peft(torch.tensor([before + after])).logits[0].log_softmax(-1)
        expected = [float(logits[len(before) + i - 1, token]) for i, token in enumerate(after)]
        assert score.token_logprobs == pytest.approx(expected, abs=1e-4)
        assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
        assert "".join(score.tokens) == completion


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda llm: llm.generate(PROMPTS, model="nobody"), "model"),
        (lambda llm: llm.generate(PROMPTS, temperature=-1), "temperature"),
        (lambda llm: llm.generate("x", wrong=1), "wrong"),
        (lambda llm: llm.chat([{"role": "nobody", "content": "x"}]), "messages[0].role"),
        (lambda llm: llm.score(["x"], [""]), "completion"),
    ],
)
def test_what_is_wrong_is_named(llm: LLM, call: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        call(llm)
    assert caught.value.param == param
    assert llm.generate("still there", max_tokens=1)


def test_adapters_come_and_go(llm: LLM, adapters: dict[str, Path]) -> None:
    assert llm.adapters == ["alpha", "beta"]
    revision = llm.load("gamma", adapters["alpha"])
    assert llm.generate("x", model="gamma", max_tokens=1)[0].model == f"gamma@{revision[:8]}"
    with pytest.raises(AdapterError):
        llm.load("gamma", adapters["beta"])
    llm.unload("gamma")
    assert llm.adapters == ["alpha", "beta"]
    with pytest.raises(AdapterError):
        llm.unload("gamma")


def test_comparing(llm: LLM) -> None:
    found = llm.compare(["tiny", "alpha", "alpha*0.5"], prompt=["Hello"], max_tokens=4)
    assert found["object"] == "comparison"


@pytest.mark.slow
def test_closing_twice_and_options_that_are_wrong(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": "fp32", "data_dir": tmp_path}
    llm = LLM(str(model), **options)
    llm.close()
    llm.close()
    with pytest.raises(ConfigError, match="max_num_sequences"):
        LLM(str(model), max_num_sequences=3, **options)
    with pytest.raises(ConfigError, match="nowhere"):
        LLM(str(model), {"x": tmp_path / "nowhere"}, **options)


def test_every_public_name_is_there_and_nothing_else_is_imported_early() -> None:
    assert sorted(manylora.__all__) == dir(manylora)
    for name in manylora.__all__:
        assert getattr(manylora, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = manylora.nothing
