"""A small retrieval set on the real model: questions find the answers that they were not trained with."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from examples.questions import DATA, read_facts
from manylora.adapters.training.run.train import TrainingResult
from manylora.server.client.local_adapter import local_files, name_sent
from tests.support.training_data import write
from tests.support.training_runs import config, run

pytestmark = [pytest.mark.real, pytest.mark.sweep, pytest.mark.timeout(900)]
FACTS = read_facts(DATA / "support.txt")


@pytest.fixture(scope="module")
def trained(real_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """Learned from four questions of each fact; the held-out ones were written by hand for that."""
    root = tmp_path_factory.mktemp("run")
    rows = [{"query": q, "positive": f.answers[0]} for f in FACTS for q in f.questions[:4]]
    held_out = [{"query": q, "positive": f.answers[0]} for f in FACTS for q in f.held_out]
    settings = config(
        real_model_dir, root, rows, task="embedding", eval_path=write(root / "eval.jsonl", held_out),
        eval_split=0, max_steps=16, batch_size=16, learning_rate=1e-3, lora_r=8, eval_steps=16,
        save_steps=100, dtype="auto", embed_pooling="mean", max_length=64,
    )  # fmt: skip
    return run(settings)


def test_more_is_found(trained: TrainingResult) -> None:
    base, adapter = trained.baseline.base, trained.baseline.adapter
    assert adapter["loss"] < 0.85 * base["loss"]
    assert adapter["accuracy@1"] >= base["accuracy@1"] + 0.2  # measured: from 0.29 to 0.54 and more
    assert adapter["recall@10"] >= base["recall@10"]


def test_the_server_finds_the_same(trained: TrainingResult, server: str) -> None:
    """By its default pooling, in bf16 where the trainer's own judgement may have another dtype."""
    answers = [fact.answers[0] for fact in FACTS]
    asked = [(question, index) for index, fact in enumerate(FACTS) for question in fact.held_out]
    files = [("files", (name_sent(path), path.read_bytes())) for path in local_files(trained.adapter)]
    with httpx.Client(base_url=f"http://127.0.0.1:{server}", timeout=120) as http:
        put = http.put("/v1/adapters/search", params={"wait": "true"}, files=files)
        assert put.status_code == 201, put.text
        texts = [*answers, *(question for question, _ in asked)]
        answer = http.post("/v1/embeddings", json={"model": "search", "input": texts})
        body = {"model": "search", "query": asked[0][0], "documents": answers}
        ranked = http.post("/v1/rerank", json=body).json()["results"]
        http.delete("/v1/adapters/search")
    vectors = np.array([entry["embedding"] for entry in answer.json()["data"]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors[len(answers) :] @ vectors[: len(answers)].T
    right = float(np.mean(cosines.argmax(1) == [index for _, index in asked]))
    assert right == pytest.approx(trained.baseline.adapter["accuracy@1"], abs=2.1 / len(asked))
    assert ranked[0]["index"] == int(cosines[0].argmax())
