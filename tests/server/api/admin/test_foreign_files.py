"""Adapters of other tools, published by every way there is: converted once, the same revision each time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.adapters import write_adapter, write_artifact
from tests.support.admin_client import Admin, completion, error_of, tarred, zipped
from tests.support.foreign_adapters import llama_cpp_tensors, write_gguf, write_mlx
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def running(model: Path, roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    resolve = [f"file://{roots}/{{name}}", f"file://{roots}/{{name}}.gguf"]
    with serving(tiny_service(model, data, adapter_root=[roots], resolve=resolve)) as running:
        yield running


@pytest.fixture
def peft(tmp_path: Path, model: Path) -> Path:
    return write_adapter(tmp_path / "peft", model, rank=4, alpha=6, targets=LINEAR, scale=0.3)


@pytest.fixture
def gguf(tmp_path: Path, peft: Path) -> Path:
    return write_gguf(tmp_path / "a.gguf", llama_cpp_tensors(load_file(peft / WEIGHTS), 4, 2))


@pytest.fixture
def mlx(tmp_path: Path, peft: Path) -> Path:
    return write_mlx(tmp_path / "mlx", load_file(peft / WEIGHTS), rank=4, scale=1.5, layers=2)


def made(answer: Any) -> Any:
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def test_a_spelling_of_peft_is_the_same_revision(admin: Admin, peft: Path, tmp_path: Path) -> None:
    plain = made(admin.upload("plain", peft, wait="true"))
    assert "converted_from" not in plain["details"]
    tensors = {
        f"module.{key.replace('.weight', '.default.weight')}": tensor
        for key, tensor in load_file(peft / WEIGHTS).items()
    }
    other = write_artifact(tmp_path / "other", json.loads((peft / CONFIG).read_text()), tensors)
    (other / CONFIG).write_bytes((peft / CONFIG).read_bytes())
    found = made(admin.upload("spelled", other, wait="true"))
    assert found["digest"] == plain["digest"]


def test_every_tool_answers_as_peft_does(admin: Admin, peft: Path, gguf: Path, mlx: Path) -> None:
    made(admin.upload("peft", peft, wait="true"))
    expected = completion(admin, "peft")
    assert expected != completion(admin, admin.server.client().models.list().data[0].id)
    for name, path, form in (("gguf", gguf, "GGUF"), ("mlx", mlx, "MLX")):
        found = made(admin.upload(name, path, wait="true"))
        assert found["details"]["converted_from"]["format"] == form
        assert found["details"]["converted_from"]["rules"]
        assert found["kind"] == "LORA"
        assert completion(admin, name) == expected


def test_every_way_in_is_the_same_revision(
    admin: Admin, gguf: Path, mlx: Path, tmp_path: Path, roots: Path
) -> None:
    digest = made(admin.upload("form", gguf, wait="true"))["digest"]
    body = admin.ask(
        "PUT",
        "/raw",
        content=gguf.read_bytes(),
        headers={"content-type": "application/octet-stream"},
        params={"wait": "true"},
    )
    assert made(body)["digest"] == digest
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "README.md").write_text("of no interest")
    (tmp_path / "dir" / "support-f32.gguf").write_bytes(gguf.read_bytes())
    (tmp_path / "a.tar.gz").write_bytes(tarred(tmp_path / "dir", folder="adapter/"))
    assert made(admin.upload("tar", tmp_path / "a.tar.gz", wait="true"))["digest"] == digest
    (roots / "there.gguf").write_bytes(gguf.read_bytes())
    assert made(admin.fetch("file", f"file://{roots}/there.gguf", wait="true"))["digest"] == digest
    assert completion(admin, "there") == completion(admin, "file")
    assert admin.get("/there")["digest"] == digest

    (tmp_path / "m.zip").write_bytes(zipped(mlx))
    digest = made(admin.upload("mlx", mlx, wait="true"))["digest"]
    assert made(admin.upload("mlx-zip", tmp_path / "m.zip", wait="true"))["digest"] == digest
    (roots / "mlx").mkdir(exist_ok=True)
    for file in mlx.iterdir():
        (roots / "mlx" / file.name).write_bytes(file.read_bytes())
    assert made(admin.fetch("mlx-dir", f"{roots}/mlx", wait="true"))["digest"] == digest


def test_it_stays_after_eviction_and_reload(admin: Admin, gguf: Path) -> None:
    made(admin.upload("a", gguf, wait="true"))
    before = completion(admin, "a")
    assert admin.post("a", "evict").status_code == 200
    assert completion(admin, "a") == before


def test_what_can_not_be_converted_leaves_nothing(admin: Admin, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(gguf.read_bytes()[:-100])
    answer = admin.upload("a", tmp_path / "broken.gguf", wait="true")
    assert error_of(answer)[0] == 422
    assert "does not lie in broken.gguf" in answer.json()["error"]["message"]
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    assert admin.upload("b", tmp_path / "model.gguf", wait="true").status_code == 422
