"""Names with slashes and of any script, on every route; a path never means two things."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from manylora.adapters.mix import ROUTE_WORDS
from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, completion, error_of

NAMES = ["org/adapter", "org/team/v1.2:x", "Übersetzer", "日本/語", "दुकान"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "files", model, seed=5)


def _paths(name: str) -> list[str]:
    """A name as clients write it into a path."""
    return sorted({quote(name, safe=""), quote(name, safe="/:"), quote(unicodedata.normalize("NFD", name))})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_route(admin: Admin, files: Path, name: str) -> None:
    written = unicodedata.normalize("NFD", name)
    made = admin.upload(quote(written, safe=""), files, wait="true")
    assert made.status_code == 201, made.text
    assert made.json()["id"] == name
    assert made.headers["x-manylora-model"].isascii()
    assert admin.names() == admin.names(prefix=written[:-1]) == [name]
    revision = made.json()["revision"]
    for path in _paths(name):
        assert admin.get(f"/{path}")["id"] == name
        for action in ("pin", "unpin", "prefetch", "evict"):
            assert admin.post(path, action).json()["id"] == name
        assert admin.post(path, "rollback").status_code in {404, 409, 400, 422}
        assert admin.ask("POST", f"/{path}/merge").status_code == 200
        assert admin.get(f"/{path}/merge")
        assert admin.ask("DELETE", f"/{path}/merge").status_code == 200
        assert error_of(admin.ask("GET", f"/{path}/export"))[0] in {400, 403, 404}
    text = completion(admin, name)
    assert completion(admin, written) == completion(admin, f"{name}@{revision[:8]}") == text
    assert completion(admin, f"{name}*0.5+{written}*0.5") == text
    assert any(card["id"] == name for card in admin.get("/v1/models")["data"])
    alias = f"alias/{name}"
    for path in _paths(alias):
        assert admin.ask("PUT", f"/v1/aliases/{path}", json={"target": written}).status_code == 200
        assert admin.get(f"/v1/aliases/{path}")["id"] == alias
        assert completion(admin, alias) == text
        assert admin.ask("DELETE", f"/v1/aliases/{path}").status_code == 200
    composed = admin.ask(
        "POST", f"/{quote(name)}-half/compose", json={"members": [{"name": written}]}, params={"wait": "true"}
    )
    assert composed.status_code == 201, composed.text
    later = admin.fetch(quote(name), "hf://none/none")
    assert later.status_code == 403
    assert admin.ask("DELETE", f"/{_paths(name)[0]}").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("word", ROUTE_WORDS)
def test_no_name_is_the_end_of_another_route(admin: Admin, files: Path, word: str) -> None:
    assert admin.upload(f"org/{word}", files, wait="true").status_code in {404, 405}
    made = admin.upload(word, files, wait="true")
    assert made.status_code == 201, made.text
    assert admin.get(f"/{word}")["id"] == word
    assert admin.ask("GET", f"/{word}/{word}").status_code in {404, 405, 400}


@pytest.mark.slow
def test_every_end_of_a_route_is_known(admin: Admin) -> None:
    paths = _openapi(admin)["paths"]
    ends = {path.rpartition("}/")[2] for path in paths if path.startswith("/v1/adapters/{name}/")}
    assert ends == set(ROUTE_WORDS)


def _openapi(admin: Admin) -> Any:
    with admin.server.http() as http:
        return http.get("/openapi.json").json()


HOSTILE = ["%2e%2e", "a%2f..", "a%2F%2e%2e%2Fb", "a//b", "%2f", "a%2f",
           "%2fa", "a%5cb",
           "a%00", "a%0a", "a%0d%0a", "%e2%80%ae", "a%e2%80%8b", "a%20b", "a*b", "a@b", "a+b", "%ff", "a%25b",
           "a%252fb", "a" * 200]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_names(admin: Admin, files: Path, path: str) -> None:
    before = sorted(admin.server.service.config.data_dir.rglob("*"))
    answer = admin.ask("PUT", f"/{path}", json={"source": str(files)})
    assert answer.status_code in {400, 403, 404, 405}, answer.text
    assert admin.ask("GET", f"/{path}").status_code in {400, 404, 405}
    assert admin.ask("DELETE", f"/{path}").status_code in {400, 404, 405}
    assert admin.names() == []
    assert sorted(admin.server.service.config.data_dir.rglob("*")) == before
