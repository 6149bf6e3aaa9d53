"""``POST /v1/embeddings``, ``/v1/score`` and ``/v1/rerank`` beside plain PEFT and transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

TEXTS = ["good", "so bad that it is worth some more words than a step has rows for in all", "?"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """An adapter for PEFT's task FEATURE_EXTRACTION, as PEFT saves it."""
    base = AutoModel.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules="all-linear")
    made = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    where = tmp_path_factory.mktemp("embedder") / "embedder"
    made.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, model: Path, embedder: Path) -> dict[str, Path]:
    writer = write_adapter(tmp_path_factory.mktemp("writer") / "writer", model)
    return {"embedder": embedder, "writer": writer}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: dict[str, Path]
) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter=adapters, max_batch_tokens=32)
    with serving(service) as server:
        yield server


def post(server: Running, path: str = "/v1/embeddings", status: int = 200, **body: Any) -> dict[str, Any]:
    with server.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    result: dict[str, Any] = answer.json()
    return result if status == 200 else result["error"]


def vectors(answer: dict[str, Any]) -> np.ndarray:
    return np.array([entry["embedding"] for entry in answer["data"]])


def states(model: Path, adapter: Path | None, text: str) -> torch.Tensor:
    """The final hidden states [T, D] of plain transformers."""
    base = AutoModel.from_pretrained(model, dtype=torch.float32)
    own = base if adapter is None else PeftModel.from_pretrained(base, adapter)
    ids = torch.tensor([byte_tokenizer().encode(text)])
    with torch.inference_mode():
        found: torch.Tensor = own(input_ids=ids).last_hidden_state[0]
    return found


@pytest.mark.parametrize("name", ["base", "embedder"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_pefts(running: Running, model: Path, embedder: Path, name: str, pooling: str) -> None:
    adapter = embedder if name == "embedder" else None
    answer = post(
        running,
        model=name if adapter else running.service.model_name,
        input=TEXTS,
        pooling=pooling,
        normalize=False,
    )
    for text, entry in zip(TEXTS, answer["data"], strict=True):
        rows = states(model, adapter, text)
        expected = rows[-1] if pooling == "last" else rows.mean(0)
        torch.testing.assert_close(torch.tensor(entry["embedding"]), expected, atol=1e-4, rtol=1e-4)


def test_the_answer_has_openais_shape(running: Running) -> None:
    answer = post(running, model="embedder", input=TEXTS)
    assert answer.keys() == {"object", "data", "model", "usage"}
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert answer["model"].startswith("embedder@")
    tokens = sum(len(byte_tokenizer().encode(text)) for text in TEXTS)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens
    for entry in answer["data"]:
        assert np.linalg.norm(entry["embedding"]) == pytest.approx(1.0, abs=1e-6)


def test_openais_client_asks_for_base64(running: Running) -> None:
    packed = running.client().embeddings.create(model="embedder", input=TEXTS[0])
    plain = post(running, model="embedder", input=[TEXTS[0]])["data"][0]["embedding"]
    np.testing.assert_allclose(packed.data[0].embedding, plain, rtol=1e-6)
    raw = post(running, model="embedder", input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(raw), "<f4").tolist() == pytest.approx(plain, rel=1e-6)


def test_fewer_dimensions_are_the_first_and_of_length_one(running: Running) -> None:
    whole = post(running, model="writer", input="a text")["data"][0]["embedding"]
    cut = post(running, model="writer", input="a text", dimensions=8)["data"][0]["embedding"]
    expected = np.array(whole[:8]) / np.linalg.norm(whole[:8])
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    error = post(running, model="writer", input="a", dimensions=len(whole) + 1, status=400)
    assert error["param"] == "dimensions"


def test_token_ids_are_texts(running: Running) -> None:
    ids = [byte_tokenizer().encode(text) for text in TEXTS]
    by_ids = vectors(post(running, model="embedder", input=ids))
    np.testing.assert_allclose(by_ids, vectors(post(running, model="embedder", input=TEXTS)), atol=1e-6)
    one = vectors(post(running, model="embedder", input=ids[0]))
    np.testing.assert_allclose(one, by_ids[:1], atol=1e-6)


def test_a_row_among_many_equals_the_row_alone(
    tmp_path: Path, model: Path, adapters: dict[str, Path]
) -> None:
    """Answers and other poolings share its steps; chunks are cut elsewhere. Bit for bit in native kernels."""
    service = tiny_service(model, tmp_path, adapter=adapters, max_batch_tokens=32, dtype="bf16")
    with serving(service) as server:
        _compare_in_company(server)


def _compare_in_company(running: Running) -> None:
    alone = {
        pooling: post(running, model="embedder", input=TEXTS[1], pooling=pooling)["data"][0]["embedding"]
        for pooling in ("last", "mean")
    }

    def write(number: int) -> None:
        with running.http() as http:
            body = {"model": "writer", "prompt": f"{number} words", "max_tokens": 30, "temperature": 0}
            assert http.post("/v1/completions", json=body).status_code == 200

    def embed(pooling: str) -> list[Any]:
        texts = [TEXTS[1], *map(str, range(20))]
        found: list[Any] = post(running, model="embedder", input=texts, pooling=pooling, cache_salt="x")[
            "data"
        ]
        return found

    with ThreadPoolExecutor(10) as threads:
        writers = [threads.submit(write, number) for number in range(6)]
        found = {pooling: threads.submit(embed, pooling) for pooling in alone}
        for pooling, future in found.items():
            assert future.result()[0]["embedding"] == alone[pooling]
        for writer in writers:
            writer.result()


def test_mixes_embed(running: Running) -> None:
    one = post(running, model="writer", input="a text")["data"]
    mixed = post(running, model="writer*0.5+embedder*0.5", input="a text")
    assert mixed["data"] != one
    assert "+" in mixed["model"]


def test_hundreds_of_texts_are_read_in_turns(running: Running) -> None:
    texts = [f"text {number}" for number in range(300)]
    answer = post(running, model="writer", input=texts)
    assert [entry["index"] for entry in answer["data"]] == list(range(300))
    last = vectors(post(running, model="writer", input=texts[-1]))
    np.testing.assert_allclose(vectors(answer)[-1:], last, atol=1e-6)


def test_an_embedder_writes_no_text(running: Running) -> None:
    error = post(running, "/v1/completions", 400, model="embedder", prompt="a")
    assert error["code"] == "unsupported_task"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[1 << 40]]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({"input": "a" * 5000}, "input"),
        ({"input": "a", "truncation_side": "left"}, "truncation_side"),
        ({"input": "a", "messages": []}, "messages"),
        ({"input": "a", "embed_dtype": "int8"}, "embed_dtype"),
        ({"input": ["a"] * 2049}, "input"),
    ],
)
def test_what_can_not_be_done_is_refused(running: Running, body: dict[str, Any], param: str) -> None:
    assert post(running, model="writer", status=400, **body)["param"] == param


def test_texts_are_cut_where_asked(running: Running) -> None:
    ids = byte_tokenizer().encode(TEXTS[1])
    for side, kept in (("left", ids[-5:]), ("right", ids[:5])):
        cut = post(running, model="writer", input=TEXTS[1], truncate_prompt_tokens=5, truncation_side=side)
        own = post(running, model="writer", input=[kept])
        np.testing.assert_allclose(vectors(cut), vectors(own), atol=1e-6)
        assert cut["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize("apply_softmax", [False, True])
@pytest.mark.parametrize("item_first", [False, True])
def test_scores_are_probabilities_of_labels(
    running: Running, model: Path, apply_softmax: bool, item_first: bool
) -> None:
    labels, items = [10, 20, 30], ["one", "two words"]
    answer = post(
        running,
        "/v1/score",
        model=running.service.model_name,
        query="is it ",
        items=items,
        label_token_ids=labels,
        apply_softmax=apply_softmax,
        item_first=item_first,
    )
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for item, scores in zip(items, answer["scores"], strict=True):
        text = item + "is it " if item_first else "is it " + item
        with torch.inference_mode():
            logits = base(input_ids=torch.tensor([byte_tokenizer().encode(text)])).logits[0, -1]
        expected = logits[labels].softmax(-1) if apply_softmax else logits.softmax(-1)[labels]
        assert scores == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


def test_scores_of_pairs_are_cosines(running: Running) -> None:
    found = vectors(post(running, model="embedder", input=["q", "a", "b"]))
    answer = post(running, "/v1/score", model="embedder", text_1="q", text_2=["a", "b"])
    expected = [float(np.dot(found[0], other)) for other in found[1:]]
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-6)
    assert post(running, "/score", model="embedder", text_1="q", text_2=["a", "b"])["data"] == answer["data"]


def test_documents_come_by_relevance(running: Running) -> None:
    documents = ["a", {"text": "q"}, "something else"]
    answer = post(running, "/v1/rerank", model="embedder", query="q", documents=documents)
    ranked = answer["results"]
    assert ranked[0]["index"] == 1
    assert ranked[0]["relevance_score"] == pytest.approx(1.0, abs=1e-6)
    assert ranked[0]["document"] == {"text": "q"}
    assert [e["relevance_score"] for e in ranked] == sorted(
        (e["relevance_score"] for e in ranked), reverse=True
    )
    best = post(
        running,
        "/rerank",
        model="embedder",
        query="q",
        documents=documents,
        top_n=1,
        return_documents=False,
    )["results"]
    assert best == [{"index": 1, "relevance_score": ranked[0]["relevance_score"]}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {}, "query"),
        ("/v1/score", {"query": "a", "items": ["b"]}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1 << 40]}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1], "pooling": "mean"}, "pooling"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "items": ["c"]}, "items"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": "b"}]}, "documents[0]"),
        ("/v1/rerank", {"query": "", "documents": ["b"]}, "query"),
    ],
)
def test_scores_and_ranks_refuse_by_name(
    running: Running, path: str, body: dict[str, Any], param: str
) -> None:
    assert post(running, path, 400, model="embedder", **body)["param"] == param


def test_the_files_of_a_base_say_how_it_embeds(tmp_path: Path, model: Path, embedder: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}
        )
    )
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    service = tiny_service(tmp_path, tmp_path / "data", adapter={"embedder": embedder})
    with serving(service) as server:
        found = post(server, model="embedder", input="a text")["data"][0]["embedding"]
    torch.testing.assert_close(
        torch.tensor(found), states(model, embedder, "a text").mean(0), atol=1e-4, rtol=1e-4
    )
