"""The interactive docs of the administrative routes: their examples run, and their schema is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin
from tests.support.running_server import serving, tiny_service

pytestmark = pytest.mark.slow


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    return tmp_path / "roots"


@pytest.fixture
def admin(tmp_path: Path, model: Path, roots: Path) -> Iterator[Admin]:
    with serving(tiny_service(model, tmp_path / "data", adapter_root=[roots])) as running:
        yield Admin(running)


def run(admin: Admin, method: str, path: str) -> list[Any]:
    """Send every example that the docs have of this route at this moment; what is answered."""
    operation = _schema(admin)["paths"][path][method]
    (name,) = (parameter["example"] for parameter in operation["parameters"] if parameter["name"] == "name")
    answers = []
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        query = {"wait": "true"} if path == "/v1/adapters/{name}" else {}
        answer = admin.ask(method, path.replace("{name}", name), json=example["value"], params=query)
        assert answer.is_success, answer.text
        answers.append(answer.json())
    return answers


def _schema(admin: Admin) -> Any:
    with admin.server.http() as http:
        return http.get("/openapi.json").json()


def test_examples_run(admin: Admin, roots: Path, model: Path) -> None:
    write_adapter(roots / "my-adapter", model, seed=1)
    (first,) = run(admin, "put", "/v1/adapters/{name}")
    assert (first["id"], first["tags"]) == ("my-adapter", ["tried"])
    write_adapter(roots / "my-adapter", model, seed=2)
    (second,) = run(admin, "put", "/v1/adapters/{name}")
    assert second["digest"] != first["digest"]
    (back,) = run(admin, "post", "/v1/adapters/{name}/rollback")
    assert back["digest"] == first["digest"]
    target, split = run(admin, "put", "/v1/aliases/{name}")
    assert target["split"] == [{"target": "my-adapter", "share": 1.0}]
    assert [arm["share"] for arm in split["split"]] == [0.9, 0.1]


def test_uploads_are_described(admin: Admin) -> None:
    form = _schema(admin)["paths"]["/v1/adapters/{name}"]["put"]["requestBody"]["content"]
    assert form["multipart/form-data"]["schema"]["required"] == ["files"]
    assert form["application/json"]["schema"] == {"$ref": "#/components/schemas/SourceBody"}
