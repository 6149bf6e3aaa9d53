"""Adapters from storages, over HTTP: published from a real S3 API, and looked up when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service

BODY = {"prompt": "Where from?", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server that may read a bucket, and looks unknown names up there and in a directory."""
    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    storage = tmp_path_factory.mktemp("storage")
    for number in range(3):
        write_adapter(storage / f"local-{number}", model, seed=20 + number)
    broken = write_adapter(storage / "broken", model, seed=30)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("lora")
        for name in ("alpha", "beta"):
            bucket.put(str(adapters / name), f"lora/shared/{name}", recursive=True)
        service = tiny_service(
            model,
            tmp_path_factory.mktemp("data"),
            adapter_url=["s3://lora/shared/"],
            resolve=[f"file://{storage}/{{name}}", "s3://lora/shared/{name}"],
        )
        with serving(service) as running:
            yield running
    moto.stop()


def ask(server: Running, name: str) -> Any:
    with server.http() as http:
        return http.post("/v1/completions", json={"model": name, **BODY})


def test_published_from_s3(server: Running) -> None:
    with server.http() as http:
        made = http.put(
            "/v1/adapters/from-s3", params={"wait": "true"}, json={"source": "s3://lora/shared/alpha"}
        )
        assert made.status_code == 201, made.text
        assert made.json()["source"] == "s3://lora/shared/alpha"
        outside = http.put(
            "/v1/adapters/other", params={"wait": "true"}, json={"source": "s3://lora/private/alpha"}
        )
        assert outside.status_code == 403
    assert ask(server, "from-s3").status_code == 200


def test_an_unknown_name_is_looked_up(server: Running) -> None:
    """By many at once, from a directory and from S3; everybody gets the same adapter."""
    names = ["local-0", "local-1", "beta", "local-2"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: ask(server, name), names))
    assert [answer.status_code for answer in answers] == [200] * len(names)
    texts = {name: answer.json()["choices"][0]["text"] for name, answer in zip(names, answers, strict=True)}
    assert len(set(texts.values())) == 4
    for name, answer in zip(names, answers, strict=True):
        assert answer.json()["choices"][0]["text"] == texts[name]
    with server.http() as http:
        known = {entry["id"]: entry["source"] for entry in http.get("/v1/adapters").json()["data"]}
    assert known["beta"] == "s3://lora/shared/beta"
    assert known["local-1"].endswith("/local-1")


def test_a_name_that_nobody_has(server: Running) -> None:
    answer = ask(server, "nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_name_whose_adapter_can_not_be_served(server: Running) -> None:
    answer = ask(server, "broken")
    assert answer.status_code == 422, answer.text
    assert "adapter_model.safetensors" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["..", "../storage", "a/../b", "%2e%2e"])
def test_a_hostile_name_reaches_no_source(server: Running, name: str) -> None:
    assert ask(server, name).status_code in {400, 404}
