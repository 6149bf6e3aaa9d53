"""``POST /classify``: labels and probabilities as plain PEFT gives them, beside everything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.support.adapters import write_adapter
from tests.support.classifiers import PeftClassifier, make_classifier
from tests.support.raw_requests import connect
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer

PAD = 256
TEXTS = ["good", "so bad that it is worth some more words", "?"]
KINDS: dict[str, dict[str, Any]] = {
    "senti": {},
    "topics": {"labels": ["art", "law", "sea"], "problem_type": "multi_label_classification"},
    "rating": {"labels": ["stars"], "problem_type": "regression"},
    "bare": {"labels": list("abcd"), "config_json": False},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("classifiers")
    return {
        name: make_classifier(root / name, model, seed=seed, **options)
        for seed, (name, options) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, model: Path, made: dict[str, Path]
) -> Iterator[Running]:
    writer = write_adapter(tmp_path_factory.mktemp("writer"), model)
    service = tiny_service(
        model, tmp_path_factory.mktemp("data"), adapter={**made, "alpha": writer}, max_batch_tokens=32
    )
    with serving(service) as server:
        yield server


@pytest.fixture
def server(running: Running) -> Iterator[Running]:
    yield running
    running.wait_until_idle()


def post(server: Running, status: int = 200, **body: Any) -> dict[str, Any]:
    with server.http() as http:
        answer = http.post("/classify", json=body)
    assert answer.status_code == status, answer.text
    result: dict[str, Any] = answer.json()
    return result if status == 200 else result["error"]


def scores(made: dict[str, Path], model: Path, name: str, ids: list[int]) -> torch.Tensor:
    return PeftClassifier(made[name], model, len(KINDS[name].get("labels", "12"))).scores(ids)


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text)
    return ids


def close(found: list[float], expected: torch.Tensor) -> None:
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_answer_has_vllms_shape(server: Running, made: dict[str, Path], model: Path) -> None:
    with server.http() as http:
        answer = http.post("/classify", json={"model": "senti", "input": TEXTS})
    body = answer.json()
    assert body.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert body["id"].startswith("classify-")
    assert body["object"] == "list"
    assert body["model"] == answer.headers["x-manylora-model"]
    assert body["model"].startswith("senti@")
    assert "x-request-id" in answer.headers
    for index, (text, entry) in enumerate(zip(TEXTS, body["data"], strict=True)):
        expected = scores(made, model, "senti", ids_of(text)).softmax(-1)
        label = ["bad", "good"][int(expected.argmax())]
        assert (entry["index"], entry["label"], entry["num_classes"]) == (index, label, 2)
        close(entry["probs"], expected)
    tokens = sum(map(len, TEXTS))
    assert body["usage"].items() >= {
        "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
    }.items()  # fmt: skip


def test_what_scores_mean(server: Running, made: dict[str, Path], model: Path) -> None:
    text = "some text"
    ids = ids_of(text)
    for name, labels in (("topics", ["art", "law", "sea"]), ("rating", ["stars"])):
        (entry,) = post(server, model=name, input=text)["data"]
        expected = scores(made, model, name, ids)
        assert entry["label"] == labels[int(expected.argmax())]
        close(entry["probs"], expected.sigmoid() if name == "topics" else expected)
    (entry,) = post(server, model="bare", input=text)["data"]
    expected = scores(made, model, "bare", ids)
    assert entry["label"] == f"LABEL_{int(expected.argmax())}"
    (raw,) = post(server, model="bare", input=text, use_activation=False)["data"]
    close(raw["probs"], expected)


def test_token_ids_and_padding(server: Running, made: dict[str, Path], model: Path) -> None:
    """transformers looks at the last token that is not the padding's, wherever others are."""
    ids = ids_of("some text")
    padded = [ids, [*ids, PAD, PAD], [PAD, *ids[:4], PAD, *ids[4:], PAD], [PAD, PAD]]
    found = post(server, model="senti", input=padded)
    for given, entry in zip(padded, found["data"], strict=True):
        close(entry["probs"], scores(made, model, "senti", given).softmax(-1))
    assert found["usage"]["prompt_tokens"] == sum(map(len, padded))
    (one,) = post(server, model="senti", input=ids)["data"]
    assert one["probs"] == pytest.approx(found["data"][0]["probs"], abs=1e-6)


def test_a_conversation(server: Running, made: dict[str, Path], model: Path) -> None:
    messages = [{"role": "user", "content": "good"}]
    tokenizer = byte_tokenizer()
    for opened in (None, False, True):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=bool(opened))
        (entry,) = post(server, model="senti", messages=messages, add_generation_prompt=opened)["data"]
        close(entry["probs"], scores(made, model, "senti", tokenizer.encode(text)).softmax(-1))


def test_truncation(server: Running, made: dict[str, Path], model: Path) -> None:
    text = "some rather long text"
    for side, kept in ((None, text[:5]), ("right", text[:5]), ("left", text[-5:])):
        found = post(server, model="senti", input=text, truncate_prompt_tokens=5, truncation_side=side)
        close(found["data"][0]["probs"], scores(made, model, "senti", ids_of(kept)).softmax(-1))
        assert found["usage"]["prompt_tokens"] == 5
    longest = server.service.max_model_len
    error = post(server, 400, model="senti", input="x" * (longest + 1))
    assert error["param"] == "input"
    assert "truncate_prompt_tokens" in error["message"]
    found = post(server, model="senti", input="x" * (longest + 1), truncate_prompt_tokens=-1)
    assert found["usage"]["prompt_tokens"] == longest


async def test_beside_answers(server: Running, made: dict[str, Path], model: Path) -> None:
    """Many at once, of all kinds: each is what it is alone."""
    client = server.async_client()

    async def classify(name: str, text: str) -> None:
        answer = await client.post("../classify", body={"model": name, "input": text}, cast_to=dict[str, Any])
        found = answer["data"][0]["probs"]
        if name == "senti":
            close(found, scores(made, model, name, ids_of(text)).softmax(-1))

    async def write(name: str) -> str:
        answer = await client.completions.create(model=name, prompt="Once", max_tokens=12, temperature=0)
        return str(answer.choices[0].text)

    alone = {name: await write(name) for name in ("tiny", "alpha")}
    asked = [classify(name, text * 5) for name in ("senti", "topics", "bare") for text in TEXTS]
    together = await asyncio.gather(write("tiny"), *asked, write("alpha"))
    assert (together[0], together[-1]) == (alone["tiny"], alone["alpha"])
    await client.close()


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "the base": ({"model": "tiny"}, "model", "the base model has no classes"),
    "a writer": ({"model": "alpha"}, "model", "has no classes: name an adapter"),
    "a mix": ({"model": "senti*0.5+topics*0.5"}, "model", "classifies, so it can't be part of a mix"),
    "with a writer": ({"model": "alpha+senti"}, "model", "'senti@.*' classifies"),
    "a strength": ({"model": "senti*0.5"}, "model", "no strength but 1"),
    "nothing": ({"input": None}, "input", "either 'input' or 'messages'"),
    "both": ({"messages": [{"role": "user", "content": "x"}]}, "input", "either 'input' or 'messages'"),
    "an empty text": ({"input": ["x", ""]}, "input", "is empty"),
    "no text": ({"input": []}, "input", "not empty"),
    "an unknown id": ({"input": [5, 9999]}, "input", "token ids go from 0 to"),
    "cut to nothing": ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be -1, or from 1 to"),
    "cut too late": ({"truncate_prompt_tokens": 99999}, "truncate_prompt_tokens", "must be -1, or from 1"),
    "a side alone": ({"truncation_side": "left"}, "truncation_side", "goes with"),
    "a prompt to open": ({"add_generation_prompt": True}, "add_generation_prompt", "goes with 'messages'"),
    "priority": ({"priority": 1}, "priority", "not supported"),
    "padding": ({"padding": "max_length"}, "padding", "not supported"),
    "a name of its own": ({"request_id": "x"}, "request_id", "not supported"),
    "sampling": ({"temperature": 0}, "temperature", "temperature"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(server: Running, case: str) -> None:
    fields, param, message = REFUSED[case]
    error = post(server, 400, **{"model": "senti", "input": "x", **fields})
    assert error["param"] == param
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error["message"])


def test_classifiers_write_nothing(server: Running) -> None:
    messages = [{"role": "user", "content": "x"}]
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("/v1/chat/completions", "model", {"model": "senti", "messages": messages}),
        ("/v1/completions", "model", {"model": "senti", "prompt": "x"}),
        ("/v1/compare", "targets[1]", {"targets": ["tiny", "senti"], "messages": messages}),
    ]
    with server.http() as http:
        for path, param, body in asked:
            answer = http.post(path, json=body)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert (error["param"], error["code"]) == (param, "unsupported_task")
            assert "use /classify" in error["message"]
        assert http.post("/tokenize", json={"model": "senti", "prompt": "x"}).json()["count"] == 1
        merged = http.post("/v1/adapters/senti/merge")
        assert merged.status_code == 422, merged.text
        assert "classifies" in merged.text


def test_names_revisions_and_aliases(server: Running, tmp_path: Path, model: Path) -> None:
    newer = make_classifier(tmp_path / "newer", model, labels=["x", "y", "z"], seed=9)
    with server.http() as http:
        first = post(server, model="senti", input="x")
        files = [("files", (path.name, path.read_bytes())) for path in newer.iterdir() if path.is_file()]
        put = http.put("/v1/adapters/senti", params={"wait": "true"}, files=files)
        assert put.status_code in {200, 201}, put.text
        second = post(server, model="senti", input="x")
        assert second["data"][0]["num_classes"] == 3
        again = post(server, model=first["model"], input="x")
        assert again["data"] == first["data"]
        assert http.put("/v1/aliases/mood", json={"target": first["model"]}).status_code < 300
        assert post(server, model="mood", input="x", user="u")["data"] == first["data"]
        assert post(server, model="tiny", input="x", adapters=[{"name": "senti"}])["data"] == second["data"]
        http.delete("/v1/aliases/mood")
        card = http.get("/v1/models/senti").json()
        full = http.get("/v1/adapters/senti").json()
        writer = http.get("/v1/models/alpha").json()
    assert (card["task"], card["labels"]) == ("classify", ["x", "y", "z"])
    assert "labels" not in writer
    assert full["kind"] == "LORA+CLASSES"
    assert full["details"]["labels"] == ["x", "y", "z"]
    assert full["details"]["problem_type"] == "single_label_classification"
    post_back = [("files", (path.name, path.read_bytes())) for path in newer.iterdir()]
    assert post_back


def test_it_is_counted(server: Running) -> None:
    def value(name: str, **labels: str) -> float:
        return server.service.metrics.registry.get_sample_value(f"manylora_{name}", labels) or 0.0

    before = value("requests_total", adapter="topics", outcome="stop")
    tokens = value("prompt_tokens_total", adapter="topics")
    post(server, model="topics", input=["ab", "cde"])
    assert value("requests_total", adapter="topics", outcome="stop") == before + 2
    assert value("prompt_tokens_total", adapter="topics") == tokens + 5
    assert value("generated_tokens_total", adapter="topics") == 0


async def _until_running(server: Running) -> None:
    while not server.service.core.scheduler.running:
        await asyncio.sleep(0)


def test_a_client_that_leaves(server: Running) -> None:
    body = {"model": "senti", "input": ["x" * 1500] * 8, "cache_salt": "leaves"}
    connection = connect(server, "/classify", body)
    server.call(_until_running(server))
    connection.close()
    server.wait_until_idle()
    registry = server.service.metrics.registry
    assert registry.get_sample_value("manylora_aborts_total", {"adapter": "senti"})


def test_the_queue_is_bounded(tmp_path: Path, model: Path, made: dict[str, Path]) -> None:
    service = tiny_service(
        model, tmp_path, adapter={"senti": made["senti"]}, max_num_seqs=2, max_waiting=1, max_batch_tokens=16
    )
    with serving(service) as server:
        error = post(server, 400, model="senti", input=["x"] * 4)
        assert (error["param"], "takes 3" in error["message"]) == ("input", True)
        holder = connect(server, "/classify", {"model": "senti", "input": ["x" * 1900] * 3})
        server.call(_until_running(server))
        refused = post(server, 429, model="senti", input="x")
        assert refused["code"] == "queue_full"
        answer = b""
        while not answer.endswith(b"}"):
            answer += holder.recv(65536)
        holder.close()
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]) == 3
        server.wait_until_idle()


def test_the_judge_pools_as_transformers_does(model: Path) -> None:
    """What these tests compare with does look at the padding token of the model's config."""
    assert AutoModelForSequenceClassification.from_pretrained(model).config.pad_token_id == PAD
