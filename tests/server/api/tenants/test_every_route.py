"""On every route what is another tenant's is answered like what is not there, and named nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.server.api.app import create_app
from tests.support.running_server import Running
from tests.support.tenant_routes import NAMING
from tests.support.tenants import ADMIN, bearer, chat, manager, publish

HIDDEN, ABSENT = "qqhiddenqq", "zzabsentzz"
OTHER, NOBODY = "globex", "nobody"
FORMS = ("{}", "{}@0123abcd", "{}*0.5", "{}@merged", "{}*0.5+own*0.5", "own+{}")
_CHANGING = re.compile(
    r"(?<![a-z])(?:req|chatcmpl|cmpl|resp|msg|file|batch|upload|part|embd|score|rerank)[-_][0-9a-zA-Z_-]+|[0-9.]+"
)

# Bodies of routes that name nothing in them, or what their path does.
BODIES: Mapping[str, Any] = {
    "/v1/adapters/{name}/compose": {"members": [{"name": "own"}, {"name": "{}"}]},
    "/v1/adapters/{name}": {"shared_with": ["{tenant}"]},
    "/v1/aliases/{name}": {"target": "{}"},
    "/v1/batches": {
        "input_file_id": "{file}",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "/v1/fine_tuning/checkpoints/{name}/permissions": {"project_ids": ["{tenant}"]},
    "/v1/fine_tuning/alpha/graders/run": {
        "grader": {
            "type": "score_model",
            "name": "judge",
            "model": "{}",
            "input": [{"role": "user", "content": "Hello"}],
        },
        "model_sample": "Hello",
    },
    "/v1/uploads": {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "{}"},
    "/v1/uploads/{upload_id}/complete": {"part_ids": ["{part}"]},
    "/v1/feedback": {"response_id": "{answer}", "score": 1},
    "/v1/fine_tuning/jobs": {"model": "{}", "training_file": "{file}"},
}


@dataclass(frozen=True)
class Thing:
    """The names and ids of what somebody has, or of nothing."""

    name: str
    tenant: str
    file: str
    batch: str
    response: str
    answer: str
    job: str
    upload: str
    part: str

    def fill(self, value: Any, form: str) -> Any:
        """``value`` with the names of this in the places that are left for them."""
        if isinstance(value, Mapping):
            return {key: self.fill(each, form) for key, each in value.items()}
        if isinstance(value, list):
            return [self.fill(each, form) for each in value]
        if not isinstance(value, str):
            return value
        known = {"{tenant}": self.tenant, "{file}": self.file, "{answer}": self.answer, "{part}": self.part}
        return known.get(value, value.replace("{}", form.replace("{}", self.name)))


Route = tuple[str, str]  # method and path, with its parameters
Things = tuple[dict[str, str], Thing, Thing]


@pytest.fixture(scope="module")
def things(server: Running, adapters: Path) -> Iterator[Things]:
    """Acme's key; what Globex has, and what nobody has."""
    with server.http() as http:
        acme, globex = manager(http, "acme"), manager(http, OTHER)
        publish(http, acme, "own", adapters / "alpha")
        publish(http, globex, HIDDEN, adapters / "beta")
        http.put(f"/v1/aliases/{HIDDEN}-alias", json={"target": HIDDEN}, headers=globex)
        line = b'{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {}}\n'
        upload = {"file": ("in.jsonl", line)}
        file = http.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=globex).json()["id"]
        rows = http.post("/v1/files", files=upload, data={"purpose": "fine-tune"}, headers=globex).json()[
            "id"
        ]
        job = {"model": HIDDEN, "training_file": rows}
        batch = {**BODIES["/v1/batches"], "input_file_id": file}
        announced = {**BODIES["/v1/uploads"], "purpose": "evals"}
        upload_id = http.post("/v1/uploads", json=announced, headers=globex).json()["id"]
        part = http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x"}, headers=globex)
        response = {"model": HIDDEN, "input": "Hello", "max_output_tokens": 2}
        found = Thing(
            HIDDEN,
            OTHER,
            file,
            http.post("/v1/batches", json=batch, headers=globex).json()["id"],
            http.post("/v1/responses", json=response, headers=globex).json()["id"],
            http.post("/v1/chat/completions", json=chat(HIDDEN), headers=globex).json()["id"],
            http.post("/v1/fine_tuning/jobs", json=job, headers=globex).json()["id"],
            upload_id,
            part.json()["id"],
        )
        absent = Thing(ABSENT, NOBODY, *(f"{each[:-8]}00000000" for each in vars_of(found)))
        yield acme, found, absent
        for tenant in ("acme", OTHER):
            http.delete(f"/v1/tenants/{tenant}?adapters=true", headers=bearer(ADMIN))


def vars_of(thing: Thing) -> tuple[str, ...]:
    """The ids that the server has made."""
    return (
        thing.file,
        thing.batch,
        thing.response,
        thing.answer,
        thing.job,
        thing.upload,
        thing.part,
    )


def body_of(path: str) -> Any:
    """A body that is right but for the names."""
    return NAMING[path]("{}") if path in NAMING else BODIES.get(path, {})


def ask(http: httpx.Client, key: dict[str, str], route: Route, thing: Thing, form: str) -> httpx.Response:
    method, path = route
    filled = path
    for parameter in re.findall(r"\{[^}]*\}", path):
        what = parameter.strip("{}").split(":")[0]
        known = {
            "file_id": thing.file,
            "batch_id": thing.batch,
            "response_id": thing.response,
            "job_id": thing.job,
            "upload_id": thing.upload,
            "tenant": thing.tenant,
        }
        filled = filled.replace(parameter, known.get(what, form.replace("{}", thing.name)))
    template = re.sub(r":[a-z_]+\}", "}", path)
    body = thing.fill(body_of(template), form) if method in {"POST", "PUT", "PATCH"} else None
    return http.request(method, filled, json=body, headers=key)


def normal(text: str, thing: Thing) -> str:
    """An answer without what is different whenever one asks, and without what was asked for."""
    for each in (*vars_of(thing), thing.name, thing.tenant):
        text = text.replace(each, "?")
    return _CHANGING.sub("#", text)


@pytest.fixture(scope="module")
def routes(server: Running) -> list[Route]:
    """Every route of the OpenAPI document."""
    paths = create_app(server.service).openapi()["paths"]
    listed = sorted((method.upper(), path) for path, methods in paths.items() for method in methods)
    assert len(listed) > 50
    return listed


def check(http: httpx.Client, things: Things, route: Route, form: str) -> None:
    key, found, absent = things
    told, missing = (ask(http, key, route, thing, form) for thing in (found, absent))
    assert told.status_code == missing.status_code, (route, form, told.text, missing.text)
    assert normal(told.text, found) == normal(missing.text, absent), (route, form)
    assert normal(str(sorted(told.headers)), found) == normal(str(sorted(missing.headers)), absent)
    assert HIDDEN not in missing.text, (route, form)
    assert OTHER not in missing.text.replace(NOBODY, ""), (route, form)


def test_no_route_tells_what_is_anothers(server: Running, routes: list[Route], things: Things) -> None:
    with server.http() as http:
        for method, path in routes:
            check(http, things, (method, path), "{}")
            if "{name" in path or path in NAMING:
                check(http, things, (method, path), "{}@0123abcd")


@pytest.mark.sweep
def test_nor_in_any_form_of_a_name(server: Running, routes: list[Route], things: Things) -> None:
    with server.http() as http:
        for (method, path), form in product(routes, FORMS):
            check(http, things, (method, path), form)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nor_by_chance(data: st.DataObject, server: Running, routes: list[Route], things: Things) -> None:
    method, path = data.draw(st.sampled_from(routes))
    prefix = data.draw(st.sampled_from(["", "acme/", "x/"]))
    form = prefix + data.draw(st.sampled_from(FORMS))
    with server.http() as http:
        check(http, things, (method, path), form)


def test_what_is_anothers_is_not_there_by_its_full_name_either(server: Running, things: Things) -> None:
    key, _, _ = things
    with server.http() as http:
        for path, body in NAMING.items():
            told = http.post(path, json=body(f"{OTHER}/{HIDDEN}"), headers=key)
            missing = http.post(path, json=body(f"{OTHER}/{ABSENT}"), headers=key)
            assert told.status_code == missing.status_code == 404, path
            assert _CHANGING.sub("#", told.text.replace(HIDDEN, ABSENT)) == _CHANGING.sub("#", missing.text)
