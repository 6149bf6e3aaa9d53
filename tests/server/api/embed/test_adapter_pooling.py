"""Adapters that say by sentence-transformers' files how they embed: in requests, mixes, every way in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from manylora.adapters.format.files import MODULES_NAME, POOLING_NAME
from manylora.adapters.format.pooling import Pooling, PoolingConfig, write_pooling
from manylora.server.client.local_adapter import local_files, name_sent
from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, error_of, tarred
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

POOLINGS = {
    "mean": PoolingConfig(Pooling.MEAN, normalize=True),
    "raw": PoolingConfig(Pooling.MEAN, normalize=False),
    "last": PoolingConfig(Pooling.LAST, normalize=True),
}
TEXT = "a text of some words"


def embedder(where: Path, model: Path, seed: int) -> Path:
    """An adapter of PEFT's task FEATURE_EXTRACTION, as PEFT saves it."""
    base = AutoModel.from_pretrained(model, dtype=torch.float32)
    made = get_peft_model(
        base, LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["q_proj", "v_proj"])
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    found = {name: embedder(root / name, model, seed) for seed, name in enumerate([*POOLINGS, "silent"])}
    for name, pooling in POOLINGS.items():
        write_pooling(pooling, 64, found[name])
    return found


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: dict[str, Path]
) -> Iterator[Running]:
    writer = write_adapter(tmp_path_factory.mktemp("writer") / "writer", model)
    service = tiny_service(
        model,
        tmp_path_factory.mktemp("data"),
        adapter={**adapters, "writer": writer},
        adapter_root=[adapters["mean"].parent],
    )
    with serving(service) as server:
        yield server


def post(server: Running, path: str = "/v1/embeddings", status: int = 200, **body: Any) -> Any:
    with server.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


def vector(server: Running, **body: Any) -> np.ndarray:
    return np.array(post(server, input=TEXT, **body)["data"][0]["embedding"])


def expected(model: Path, adapter: Path, pooling: PoolingConfig) -> np.ndarray:
    """By plain PEFT and transformers."""
    own = PeftModel.from_pretrained(AutoModel.from_pretrained(model, dtype=torch.float32), adapter)
    with torch.inference_mode():
        states = own(input_ids=torch.tensor([byte_tokenizer().encode(TEXT)])).last_hidden_state[0]
    found = states[-1] if pooling.pooling == Pooling.LAST else states.mean(0)
    return np.array((found / found.norm() if pooling.normalize else found).tolist())


@pytest.mark.parametrize("name", POOLINGS)
def test_an_adapter_embeds_as_its_files_say(
    running: Running, model: Path, adapters: dict[str, Path], name: str
) -> None:
    np.testing.assert_allclose(
        vector(running, model=name), expected(model, adapters[name], POOLINGS[name]), atol=1e-4
    )
    details = Admin(running).get(f"/{name}")["details"]
    assert details["pooling"] == POOLINGS[name].pooling.lower()
    assert details["normalize"] == POOLINGS[name].normalize


def test_a_request_says_otherwise(running: Running, model: Path, adapters: dict[str, Path]) -> None:
    asked = vector(running, model="mean", pooling="last", normalize=False)
    other = PoolingConfig(Pooling.LAST, normalize=False)
    np.testing.assert_allclose(asked, expected(model, adapters["mean"], other), atol=1e-4, rtol=1e-4)
    half = vector(running, model="raw", normalize=True)
    unit = PoolingConfig(Pooling.MEAN, normalize=True)
    np.testing.assert_allclose(half, expected(model, adapters["raw"], unit), atol=1e-4)


def test_an_adapter_that_says_nothing_embeds_as_the_base(
    running: Running, model: Path, adapters: dict[str, Path]
) -> None:
    np.testing.assert_allclose(
        vector(running, model="silent"), expected(model, adapters["silent"], PoolingConfig()), atol=1e-4
    )


def test_members_of_a_mix_that_differ(running: Running) -> None:
    mix = "mean*0.5+last*0.5"
    error = post(running, model=mix, input=TEXT, status=400)
    assert error["param"] == "pooling"
    assert "mean@" in error["message"]
    assert "last@" in error["message"]
    assert len(vector(running, model=mix, pooling="mean")) == 64
    lengths = post(running, model="mean*0.5+raw*0.5", input=TEXT, status=400)
    assert lengths["param"] == "normalize"
    assert len(vector(running, model="mean*0.5+raw*0.5", normalize=False)) == 64
    ranked = post(running, "/v1/rerank", model="mean*0.5+raw*0.5", query="q", documents=["a", "q"])
    assert ranked["results"][0]["index"] == 1  # cosines are the same either way
    assert post(running, "/v1/score", 400, model=mix, text_1="a", text_2="b")["param"] == "pooling"


def test_a_mix_with_one_that_says_nothing(running: Running) -> None:
    mix = "raw*0.5+writer*0.5"
    own = vector(running, model=mix)
    np.testing.assert_array_equal(own, vector(running, model=mix, pooling="mean", normalize=False))
    assert np.linalg.norm(own - vector(running, model=mix, pooling="last", normalize=False)) > 0.1


def form(directory: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """The parts that the client sends."""
    return [("files", (name_sent(path), path.read_bytes())) for path in local_files(directory)]


@pytest.mark.parametrize("way", ["form", "backslashes", "archive", "archive in a folder", "path"])
def test_the_files_come_on_every_way(running: Running, adapters: dict[str, Path], way: str) -> None:
    admin, source = Admin(running), adapters["raw"]
    if way in ("form", "backslashes"):
        parts = form(source)
        assert POOLING_NAME in {name for _, (name, _) in parts}
        if way == "backslashes":
            parts = [
                (field, (f"some\\{name}".replace("/", "\\"), content)) for field, (name, content) in parts
            ]
        answer = admin.ask("PUT", "/new", files=parts, params={"wait": "true"})
    elif way == "path":
        answer = admin.ask("PUT", "/new", json={"source": str(source)}, params={"wait": "true"})
    else:
        packed = tarred(source, folder="some/" if "folder" in way else "")
        answer = admin.ask("PUT", "/new", content=packed, params={"wait": "true"})
    assert answer.status_code in (200, 201), answer.text
    assert answer.json()["digest"] == admin.get("/raw")["digest"]
    np.testing.assert_array_equal(vector(running, model="new"), vector(running, model="raw"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (POOLING_NAME, json.dumps({"pooling_mode_cls_token": True})),
        (POOLING_NAME, "[" * 100_000),
        (MODULES_NAME, json.dumps([{"type": "sentence_transformers.models.Dense"}])),
        (MODULES_NAME, "{"),
        (MODULES_NAME, '[], "steps": []'),
    ],
)
def test_what_is_not_served_is_refused(
    running: Running, adapters: dict[str, Path], tmp_path: Path, name: str, content: str
) -> None:
    bad = Path(shutil.copytree(adapters["mean"], tmp_path / "bad"))
    (bad / name).write_text(content)
    admin = Admin(running)
    answer = admin.ask("PUT", "/bad", files=form(bad), params={"wait": "true"})
    assert error_of(answer)[:2] == (422, "invalid_adapter")
    assert name in answer.json()["error"]["message"]
    assert admin.get("/bad")["publication"]["state"] == "failed"
