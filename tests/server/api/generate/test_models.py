"""``GET /v1/models/{id}``: whatever may be asked for by a model string can be looked at by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.admin_client import Admin
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server with three adapters, an alias for one of them, one for a mix, and one that splits."""
    with serving(service_of(tmp_path_factory.mktemp("data"), model, adapters)) as running:
        admin = Admin(running)
        one = {"single": [("alpha", 1.0)], "blend": [("alpha*0.5+beta*0.5", 1.0)]}
        for name, arms in {**one, "split": [("alpha", 0.5), ("beta", 0.5)]}.items():
            split = [{"target": target, "share": share} for target, share in arms]
            assert admin.ask("PUT", f"/v1/aliases/{name}", json={"split": split}).status_code < 300
        yield running


def card(server: Running, model: str) -> Any:
    with server.http() as http:
        answer = http.get(f"/v1/models/{model}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def digest(server: Running, name: str) -> str:
    return server.service.adapters.views.get(name).digest


def answers(server: Running, model: str) -> bool:
    with server.http() as http:
        body = {"model": model, "prompt": "x", "max_tokens": 1}
        return http.post("/v1/completions", json=body).status_code == 200


def test_what_answers_can_be_looked_at(running: Running) -> None:
    """Generated: every string that a request may have as its model, and no other."""
    names = ["alpha", "beta", "single", "blend", "split", "tiny", "nothing"]
    revision = digest(running, "alpha")
    ends = ["", f"@{revision[:8]}", f"@{revision}", "@00000000", "*0.5", "*-1", "*9", "@merged", "*", "@"]
    models = [name + end for name in names for end in ends]
    models += [f"{first}+{second}" for first in models[::3] for second in ("beta", "blend*0.5", "nothing")]
    served = 0
    for model in models:
        with running.http() as http:
            status = http.get(f"/v1/models/{model}").status_code
        assert (status == 200) == answers(running, model), model
        assert status in {200, 404}, model
        served += status == 200
    assert served > 20


def test_a_revision(running: Running) -> None:
    whole = digest(running, "alpha")
    plain = card(running, "alpha")
    for prefix in (whole[:4], whole[:8], whole):
        shown = card(running, f"alpha@{prefix}")
        assert shown["id"] == f"alpha@{prefix}"
        assert shown["parent"] == "tiny"
        for field in ("object", "revision", "rank", "modules", "bytes", "max_model_len", "owned_by"):
            assert shown[field] == plain[field], field


def test_a_mix(running: Running) -> None:
    shown = card(running, "alpha*0.7+beta*0.3")
    assert shown["adapters"] == [
        {"name": "alpha", "weight": 0.7, "revision": digest(running, "alpha")[:8]},
        {"name": "beta", "weight": 0.3, "revision": digest(running, "beta")[:8]},
    ]
    assert shown["object"] == "model"
    assert "rank" not in shown


def test_aliases(running: Running) -> None:
    assert card(running, "single")["root"] == "alpha"
    assert card(running, "split")["root"] == "alpha, beta"
    members = card(running, "blend*0.5+gamma")["adapters"]
    assert [(member["name"], member["weight"]) for member in members] == [
        ("alpha", 0.25),
        ("beta", 0.25),
        ("gamma", 1.0),
    ]
    assert card(running, "split+gamma")["adapters"][0] == {"name": "split", "weight": 1.0}


def test_a_merged_copy(running: Running) -> None:
    admin = Admin(running)
    with running.http() as http:
        assert http.get("/v1/models/gamma@merged").status_code == 404
        assert admin.post("gamma", "merge?wait=true").status_code < 300
        assert http.get("/v1/models/gamma@merged").status_code == 200


def test_a_client_finds_them(running: Running) -> None:
    client = running.client()
    for model in (f"alpha@{digest(running, 'alpha')[:8]}", "single", "alpha*0.5+beta*0.5", "tiny"):
        assert client.models.retrieve(model).id == model
