"""Loading and unloading adapters over HTTP, as tooling written for vLLM does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roots")


@pytest.fixture
def root(roots: Path, tmp_path: Path) -> Path:
    """A directory of the test's own that the server may load from."""
    directory = roots / tmp_path.name
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, model: Path, roots: Path) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter_root=[roots], max_lora_rank=16)
    with serving(service) as running:
        yield running


@pytest.fixture
def server(empty: Running) -> Iterator[Running]:
    """A server without adapters; what a test loads is unloaded after it, and leaves nothing behind."""
    yield empty
    for adapter in empty.service.adapters.views.serving():
        assert _post(empty, UNLOAD, lora_name=adapter.name).status_code == 200
    empty.wait_until_idle()
    assert empty.service.metrics.registry.get_sample_value("manylora_adapters_resident_bytes") == 0


def _post(server: Running, path: str, **body: Any) -> httpx.Response:
    with server.http() as http:
        return http.post(path, json=body)


def _load(server: Running, name: str, path: Path, **body: Any) -> httpx.Response:
    return _post(server, LOAD, lora_name=name, lora_path=str(path), **body)


def _names(server: Running) -> list[str]:
    return [model.id for model in server.client().models.list().data]


def _text(server: Running, model: str) -> str:
    client = server.client()
    return client.completions.create(model=model, prompt="Hello", temperature=0, max_tokens=8).choices[0].text


def test_load_use_unload(server: Running, model: Path, root: Path) -> None:
    write_adapter(root / "a", model, targets="all-linear")
    loaded = _load(server, "a", root / "a")
    assert loaded.status_code == 200
    assert loaded.text == "Success: LoRA adapter 'a' added successfully."
    assert _names(server) == ["tiny", "a"]
    revision = server.client().models.retrieve("a").to_dict()["revision"]
    assert loaded.headers["x-manylora-model"] == f"a@{revision}"
    assert _text(server, "a") != _text(server, "tiny")
    unloaded = _post(server, UNLOAD, lora_name="a")
    assert unloaded.status_code == 200
    assert unloaded.text == "Success: LoRA adapter 'a' removed successfully."
    assert int(unloaded.headers["x-manylora-bytes-freed"]) > 0
    assert _names(server) == ["tiny"]
    again = _post(server, UNLOAD, lora_name="a")
    assert again.status_code == 404
    assert again.json()["error"]["param"] == "lora_name"


def test_a_relative_path_is_looked_up_under_the_roots(server: Running, model: Path, root: Path) -> None:
    write_adapter(root / "a", model)
    assert _load(server, "a", Path(root.name) / "a").status_code == 200


def test_a_name_in_use(server: Running, model: Path, root: Path) -> None:
    first = write_adapter(root / "first", model, seed=1, targets="all-linear")
    second = write_adapter(root / "second", model, seed=2, targets="all-linear")
    assert _load(server, "a", first).status_code == 200
    before = _text(server, "a")
    taken = _load(server, "a", second)
    assert taken.status_code == 409
    assert taken.json()["error"]["param"] == "lora_name"
    assert taken.json()["error"]["code"] == "adapter_exists"
    assert _text(server, "a") == before
    assert _load(server, "a", second, load_inplace=True).status_code == 200
    assert _text(server, "a") != before
    assert _load(server, "tiny", second, load_inplace=True).status_code == 409


def test_a_running_answer_keeps_its_revision(server: Running, model: Path, root: Path) -> None:
    first = write_adapter(root / "first", model, seed=1, targets="all-linear")
    second = write_adapter(root / "second", model, seed=2, targets="all-linear")
    assert _load(server, "a", first).status_code == 200
    options: dict[str, Any] = {"prompt": "Hello", "temperature": 0, "max_tokens": 300}
    extra = {"ignore_eos": True}
    client = server.client()
    alone = client.completions.create(model="a", **options, extra_body=extra)
    stream = client.completions.create(model="a", stream=True, **options, extra_body=extra)
    text = next(stream).choices[0].text
    assert _load(server, "a", second, load_inplace=True).status_code == 200
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == alone.choices[0].text


def _remove_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


def _only_bin(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


def _change(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def _wrong_shape(directory: Path) -> None:
    _change(directory, lambda tensors: tensors.update({min(tensors): torch.zeros(8, 3)}))


def _renamed_tensor(directory: Path) -> None:
    _change(directory, lambda tensors: tensors.update({"renamed": tensors.pop(min(tensors))}))


def _nan(directory: Path) -> None:
    _change(directory, lambda tensors: tensors.update({min(tensors): tensors[min(tensors)] * torch.nan}))


def _broken_config(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_remove_weights, WEIGHTS),
        (_only_bin, ".bin"),
        (_wrong_shape, "3"),
        (_renamed_tensor, "renamed"),
        (_nan, "finite"),
        (_broken_config, "adapter_config.json"),
    ],
)
def test_bad_artifacts(
    server: Running, model: Path, root: Path, spoil: Callable[[Path], None], text: str
) -> None:
    spoil(write_adapter(root / "a", model))
    answer = _load(server, "a", root / "a")
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == "lora_path"
    assert text in error["message"]
    assert _names(server) == ["tiny"]
    assert _text(server, "tiny")


def test_a_rank_above_the_limit(server: Running, model: Path, root: Path) -> None:
    answer = _load(server, "a", write_adapter(root / "a", model, rank=17))
    assert answer.status_code == 422
    assert "16" in answer.json()["error"]["message"]
    assert _names(server) == ["tiny"]


def test_paths(server: Running, model: Path, root: Path, tmp_path: Path) -> None:
    outside = write_adapter(tmp_path / "outside", model)
    (root / "link").symlink_to(outside)
    cases = [
        (str(root / "missing"), 422, "artifact_missing"),
        (str(outside), 403, "source_forbidden"),
        (str(root / ".." / ".." / tmp_path.name / "outside"), 403, "source_forbidden"),
        (f"../{tmp_path.name}/outside", 403, "source_forbidden"),
        (str(root / "link"), 403, "source_forbidden"),
        ("/etc/passwd", 403, "source_forbidden"),
    ]
    for path, status, code in cases:
        answer = _post(server, LOAD, lora_name="a", lora_path=path)
        assert answer.status_code == status, path
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["param"] == "lora_path"
    assert _names(server) == ["tiny"]


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a//b", "a+b", "a*b", "a@b", "-a", ".a", " a", "a\n", "€", "x" * 129, "x" * 10_000],
)
def test_hostile_names(server: Running, model: Path, root: Path, name: str) -> None:
    answer = _load(server, name, write_adapter(root / "a", model))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "lora_name"
    assert _names(server) == ["tiny"]


@pytest.mark.parametrize("name", ["lora", "base_model", "default", "base", "None", "0"])
def test_names_that_break_others(server: Running, model: Path, root: Path, name: str) -> None:
    assert _load(server, name, write_adapter(root / "a", model)).status_code == 200
    assert _text(server, name)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"lora_name": "a"}, "lora_path"),
        ({"lora_path": "a"}, "lora_name"),
        ({"lora_name": "a", "lora_path": ""}, "lora_path"),
        ({"lora_name": "a", "lora_path": "a\0b"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "x" * 5000}, "lora_path"),
        ({"lora_name": "a", "lora_path": "a", "load_inplace": "yes"}, "load_inplace"),
        ({"lora_name": "a", "lora_path": "a", "is_3d_lora_weight": True}, "is_3d_lora_weight"),
        ({"lora_name": "a", "lora_path": "a", "colour": 1}, "colour"),
    ],
)
def test_bad_bodies(server: Running, body: dict[str, Any], param: str) -> None:
    answer = _post(server, LOAD, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_loading_is_off_without_roots(tmp_path: Path, model: Path) -> None:
    adapter = write_adapter(tmp_path / "a", model)
    with serving(tiny_service(model, tmp_path / "data")) as running:
        answer = _load(running, "a", adapter)
        assert answer.status_code == 403
        assert "--adapter-root" in answer.json()["error"]["message"]


def test_unload_waits_for_running_answers(server: Running, model: Path, root: Path) -> None:
    """Unloading refuses new requests at once; the answer that runs is completed first."""
    assert _load(server, "a", write_adapter(root / "a", model)).status_code == 200
    stream = server.client().completions.create(
        model="a", prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(stream).choices
    assert _post(server, UNLOAD, lora_name="a").status_code == 200
    assert server.references == 0
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
    assert _post(server, "/v1/completions", model="a", prompt="x").status_code == 404
