"""``POST /v1/compare`` over HTTP, judged by PEFT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.adapters import write_adapter
from tests.support.peft_oracle import Peft
from tests.support.running_server import Running
from tests.support.served_adapters import ADAPTERS, MESSAGES, compare
from tests.support.tiny_models import VOCAB, byte_tokenizer
from tests.support.vocabulary_adapters import GROWN, make


@pytest.fixture(scope="module")
def peft(model: Path, adapters: Path) -> Peft:
    return Peft(model, {name: adapters / name for name in ADAPTERS})


def prompt_ids() -> list[int]:
    found: list[int] = byte_tokenizer().apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    return found


def logprobs(peft: Peft, tokens: list[int], adapter: str | None) -> torch.Tensor:
    """Log-probabilities [n, V] of what follows the prompt and each of ``tokens``, in float64."""
    prompt = prompt_ids()
    return peft.logits([*prompt, *tokens], adapter)[len(prompt) - 1 : -1].double().log_softmax(-1)


def test_the_same_model_twice_has_no_distance(server: Running) -> None:
    for name in ("tiny", "alpha", "alpha*0.5+beta*0.25"):
        result = compare(server, name, name)
        (pair,) = result["cases"][0]["pairs"]
        assert pair["same_model"]
        assert pair["kl"] == pair["js"] == pair["logit_difference"] == [0.0] * 12
        assert all(pair["top1_agrees"])
        assert pair["first_divergent"] is None
        assert result["summary"][1]["max_kl"] == result["summary"][1]["mean_kl"] == 0
        assert result["verdict"]["level"] == "equal up to rounding"


def test_distances_equal_those_from_pefts_logits(server: Running, peft: Peft) -> None:
    result = compare(server, "tiny", "alpha", "gamma", max_tokens=40)
    (case,) = result["cases"]
    tokens = [token["id"] for token in case["reference"]["tokens"]]
    assert len(tokens) == 40
    base = logprobs(peft, tokens, None)
    for pair, name in zip(case["pairs"], ("alpha", "gamma"), strict=True):
        other = logprobs(peft, tokens, name)
        kl = (base.exp() * (base - other)).sum(-1)
        middle = ((base.exp() + other.exp()) / 2).log()
        js = 0.5 * ((base.exp() * (base - middle)).sum(-1) + (other.exp() * (other - middle)).sum(-1))
        assert pair["kl"] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6)
        assert pair["js"] == pytest.approx(js.tolist(), rel=1e-3, abs=1e-6)
        assert pair["top1_agrees"] == (base.argmax(-1) == other.argmax(-1)).tolist()
        scores = case["scores"][pair["target"]]
        chosen = other[range(40), tokens]
        assert scores["logprobs"] == pytest.approx(chosen.tolist(), abs=1e-3)
        assert scores["perplexity"] == pytest.approx(math.exp(-float(chosen.mean())), rel=1e-3)
        summary = result["summary"][pair["target"]]
        assert summary["mean_kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
        assert summary["max_kl"] == max(pair["kl"]) > 0.01
        assert summary["positions"] == 40
    assert result["verdict"]["level"] == "different"


def test_logit_differences_are_those_of_pefts_logits(server: Running, peft: Peft) -> None:
    result = compare(server, "alpha", "beta", reference="some text to score")
    (case,) = result["cases"]
    tokens = [token["id"] for token in case["reference"]["tokens"]]
    prompt = prompt_ids()
    rows = [peft.logits([*prompt, *tokens], name)[len(prompt) - 1 : -1] for name in ("alpha", "beta")]
    expected = (rows[0] - rows[1]).abs().amax(-1).tolist()
    assert case["pairs"][0]["logit_difference"] == pytest.approx(expected, rel=1e-3)
    assert result["summary"][1]["largest_logit_difference"] == pytest.approx(max(expected), rel=1e-3)


def test_the_same_weights_by_another_way_are_at_rounding_level(server: Running) -> None:
    """Half an adapter twice is the adapter; it is scored apart from it, not recognized by name."""
    result = compare(server, "alpha", "alpha*0.5+alpha*0.5", "alpha*0.25+alpha*0.75", max_tokens=30)
    for pair in result["cases"][0]["pairs"]:
        assert not pair["same_model"]
        assert max(pair["kl"]) < 1e-9
        assert all(pair["top1_agrees"])
    assert result["verdict"]["level"] == "equal up to rounding"


def test_rank_halves_make_the_whole(server: Running, tmp_path: Path, model: Path) -> None:
    """An adapter against the mix of its lower and upper ranks: other pages, other order, same model."""
    from safetensors.torch import load_file

    from tests.support.adapters import lora_config, write_artifact

    whole = write_adapter(tmp_path / "whole", model, rank=8, alpha=8, seed=9)
    tensors = load_file(whole / "adapter_model.safetensors")
    for half, name in enumerate(("lower", "upper")):
        part = slice(4 * half, 4 * half + 4)
        cut = {
            key: (value[part] if "lora_A" in key else value[:, part]).contiguous()
            for key, value in tensors.items()
        }
        write_artifact(tmp_path / name, lora_config(rank=4, alpha=4), cut)
    for name in ("whole", "lower", "upper"):
        server.call(server.service.adapters.admin.load(name, tmp_path / name))
    try:
        result = compare(server, "whole", "lower+upper", "lower", max_tokens=30)
    finally:
        for name in ("whole", "lower", "upper"):
            server.call(server.service.adapters.deletions.delete(name))
    equal, half_only = result["cases"][0]["pairs"]
    assert not equal["same_model"]
    assert max(equal["kl"]) < 1e-9
    assert max(equal["logit_difference"]) < 1e-4
    assert max(half_only["kl"]) > 1e-3
    assert result["summary"][1]["level"] == "equal up to rounding"


def test_an_adapter_against_its_merged_copy(server: Running) -> None:
    """In float32, so what is left is rounding; and the copy is as unused as before."""
    variants = server.service.adapters.variants
    assert variants is not None
    with server.http() as http:
        assert http.post("/v1/adapters/beta/merge").status_code == 200
    try:
        result = compare(server, "beta", "beta@merged", "tiny", "beta@merged", max_tokens=40)
        (variant,) = variants.list()
        assert variant.references == 0
    finally:
        with server.http() as http:
            assert http.delete("/v1/adapters/beta/merge").status_code == 200
    merged, base, again = result["cases"][0]["pairs"]
    assert not merged["same_model"]
    assert 0 < max(merged["logit_difference"]) < 1e-3
    assert max(merged["kl"]) < 1e-8
    assert merged["kl"] == again["kl"]
    assert max(base["kl"]) > 0.01
    assert [entry["level"] for entry in result["summary"][1:3]] == ["equal up to rounding", "different"]


def test_answers_are_those_of_the_chat_route(server: Running) -> None:
    result = compare(server, "tiny", "alpha", "beta*0.5", max_tokens=20)
    case = result["cases"][0]
    for target, name in enumerate(("tiny", "alpha", "beta*0.5")):
        expected = server.client().chat.completions.create(
            model=name,
            messages=MESSAGES,  # type: ignore[arg-type]
            max_tokens=20,
            temperature=0,
        )
        answer = case["answers"][target]
        assert answer["text"] == expected.choices[0].message.content
        assert answer["finish_reason"] == expected.choices[0].finish_reason
        assert answer["completion_tokens"] == expected.usage.completion_tokens  # type: ignore[union-attr]
        assert 0 < answer["ttft_seconds"] <= answer["total_seconds"]
    assert [target["target"] for target in result["targets"]] == ["tiny", "alpha", "beta*0.5"]
    assert result["targets"][0]["model"] == "tiny"
    assert result["targets"][1]["model"].startswith("alpha@")
    assert case["answers"][0]["departs_at"] is None
    assert case["answers"][1]["departs_at"] is not None
    pieces = "".join(token["text"] for token in case["reference"]["tokens"])
    assert pieces.removesuffix("<|im_end|>") == case["reference"]["text"] == case["answers"][0]["text"]


def test_the_first_divergent_token(server: Running) -> None:
    case = compare(server, "tiny", "alpha", max_tokens=40)["cases"][0]
    (pair,) = case["pairs"]
    first = pair["top1_agrees"].index(False)
    base, other = (scores["top_tokens"][first] for scores in case["scores"])
    assert pair["first_divergent"] == {"position": first, "baseline": base, "target": other}
    assert base != other


def test_seeds_and_one_by_one(server: Running) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    at_once = compare(server, "alpha", "beta", **fields)
    in_turn = compare(server, "alpha", "beta", **fields, one_by_one=True)
    texts = [[answer["text"] for answer in r["cases"][0]["answers"]] for r in (at_once, in_turn)]
    assert texts[0] == texts[1]
    assert texts[0] != [
        a["text"] for a in compare(server, "alpha", "beta", max_tokens=16)["cases"][0]["answers"]
    ]


@pytest.mark.slow
def test_an_adapter_that_adds_tokens(server: Running, tmp_path: Path, model: Path) -> None:
    """It can be compared with the base, until its answer has a token that the base does not know."""
    tables: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    grown = make(tmp_path / "grown", model, seed=4, rows=GROWN, **tables)
    server.call(server.service.adapters.admin.load("grown", grown))
    body = {"messages": MESSAGES, "temperature": 2.0, "seed": 1, "max_tokens": 300, "ignore_eos": True}
    try:
        result = compare(server, "tiny", "grown", max_tokens=20)
        with server.http() as http:
            refused = http.post("/v1/compare", json={**body, "targets": ["grown", "tiny"]})
            alone = http.post("/v1/compare", json={**body, "targets": ["grown", "grown*0.5"]})
    finally:
        server.call(server.service.adapters.deletions.delete("grown"))
    assert 0 < result["summary"][1]["mean_kl"] < math.inf
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "targets[1]"
    assert alone.status_code == 200, alone.text
    assert max(token["id"] for token in alone.json()["cases"][0]["reference"]["tokens"]) >= VOCAB


def test_another_baseline(server: Running) -> None:
    forth = compare(server, "alpha", "beta", reference=1)
    assert forth["baseline"] == 1
    assert [pair["target"] for pair in forth["cases"][0]["pairs"]] == [0]
    assert forth["cases"][0]["reference"]["target"] == 1
    assert forth["cases"][0]["reference"]["text"] == forth["cases"][0]["answers"][1]["text"]
    assert forth["summary"][1]["max_kl"] == 0


def test_several_prompts_and_references(server: Running) -> None:
    texts = ["first reference", "second, which is longer"]
    result = compare(server, "tiny", "alpha", prompt=["Once", "Twice"], reference=texts, max_tokens=0)
    assert [case["reference"]["text"] for case in result["cases"]] == texts
    assert [case["answers"] for case in result["cases"]] == [[], []]
    assert result["summary"][1]["positions"] == sum(map(len, texts))
    kl = [x for case in result["cases"] for x in case["pairs"][0]["kl"]]
    assert result["summary"][1]["mean_kl"] == pytest.approx(sum(kl) / len(kl))
    conversations = [MESSAGES, [{"role": "user", "content": "Another"}]]
    assert len(compare(server, "tiny", "alpha", conversations=conversations)["cases"]) == 2


def test_a_reference_longer_than_a_window(server: Running, peft: Peft) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(300))
    result = compare(server, "tiny", "gamma", reference=text, max_tokens=0)
    tokens = [token["id"] for token in result["cases"][0]["reference"]["tokens"]]
    base, other = logprobs(peft, tokens, None), logprobs(peft, tokens, "gamma")
    kl = (base.exp() * (base - other)).sum(-1)
    assert result["cases"][0]["pairs"][0]["kl"] == pytest.approx(kl.tolist(), rel=2e-3, abs=1e-5)
