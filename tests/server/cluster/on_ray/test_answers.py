"""Two replicas answer what one server answers: texts, streams, headers and errors."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ray_application import RayApplication
from tests.support.running_server import Running

pytestmark = [pytest.mark.ray, pytest.mark.sweep, pytest.mark.timeout(900)]

MODELS = ("tiny", "alpha", "beta", "gamma", "alpha*0.7+beta*0.3", "alpha+beta+gamma*-0.5")
# Of one answer, or added on the way; everything else is compared.
OWN_HEADERS = {"date", "x-request-id", "x-manylora-replica", "server", "content-length", "request-id"}


def chat(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me something"}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **fields}


def both(alone: Running, on_ray: RayApplication, method: str, path: str, **options: Any) -> list[Any]:
    found = []
    for server in (alone, on_ray):
        with server.http() as http:
            found.append(http.request(method, path, **options))
    return found


def headers_of(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OWN_HEADERS}


@pytest.mark.parametrize("mix", MODELS)
def test_greedy_texts_are_those_of_one_server(mix: str, alone: Running, on_ray: RayApplication) -> None:
    one, two = both(alone, on_ray, "POST", "/v1/chat/completions", json=chat(mix))
    assert one.status_code == two.status_code == 200
    assert one.json()["choices"] == two.json()["choices"]
    assert one.json()["usage"] == two.json()["usage"]
    assert headers_of(one) == headers_of(two)


def test_every_replica_answers_so(alone: Running, on_ray: RayApplication) -> None:
    """Many at once, so that both have some; each text is that of one server."""
    with alone.http() as http:
        expected = {
            model: http.post("/v1/chat/completions", json=chat(model)).json()["choices"] for model in MODELS
        }
    with on_ray.http() as http, ThreadPoolExecutor(12) as pool:
        asked = [MODELS[number % len(MODELS)] for number in range(60)]
        answers = list(pool.map(lambda m: http.post("/v1/chat/completions", json=chat(m)), asked))
    assert {answer.headers["x-manylora-replica"] for answer in answers} == {
        r["id"] for r in on_ray.replicas()
    }
    for model, answer in zip(asked, answers, strict=True):
        assert answer.json()["choices"] == expected[model]


@pytest.mark.parametrize("mix", ["tiny", "alpha", "alpha*0.7+beta*0.3"])
def test_streams_are_those_of_one_server(mix: str, alone: Running, on_ray: RayApplication) -> None:
    one, two = both(alone, on_ray, "POST", "/v1/chat/completions", json=chat(mix, stream=True))
    assert headers_of(one) == headers_of(two)
    assert one.text.endswith("data: [DONE]\n\n")
    assert _events(one.text) == _events(two.text)


def _events(text: str) -> list[Any]:
    """The events without what is one answer's own."""
    kept = re.sub(r'"(id|created)":("[^"]*"|\d+)', r'"\1":0', text)
    return [
        line if "[DONE]" in line else json.loads(line.removeprefix("data: "))
        for line in kept.split("\n\n")
        if line
    ]


REFUSED = [
    ("POST", "/v1/chat/completions", {"json": chat("nobody")}),
    ("POST", "/v1/chat/completions", {"json": chat("alpha*9+beta")}),
    ("POST", "/v1/chat/completions", {"json": chat("alpha", temperature=-1)}),
    ("POST", "/v1/chat/completions", {"json": chat("alpha", unheard_of=1)}),
    ("POST", "/v1/chat/completions", {"content": b"{not json"}),
    ("POST", "/v1/chat/completions", {"content": b"x" * (5 << 20)}),
    ("POST", "/v1/messages", {"json": chat("nobody")}),
    ("GET", "/v1/nothing", {}),
    ("GET", "/v1/adapters/nobody", {}),
    ("GET", "/v1/adapters/a%2Fb%20c", {}),
    ("DELETE", "/v1/chat/completions", {}),
    ("HEAD", "/v1/models", {}),
    ("GET", "/ready", {}),
    ("GET", "/health", {}),
]


@pytest.mark.parametrize(("method", "path", "options"), REFUSED, ids=range(len(REFUSED)))
def test_errors_are_those_of_one_server(
    method: str, path: str, options: Any, alone: Running, on_ray: RayApplication
) -> None:
    one, two = both(alone, on_ray, method, path, **options)
    assert one.status_code == two.status_code
    assert _without_id(one.text) == _without_id(two.text)
    assert headers_of(one) == headers_of(two)


def _without_id(text: str) -> str:
    return re.sub(r'"request_id":"[^"]*"', "", text)


def test_what_is_published_through_one_serves_on_all(on_ray: RayApplication, adapters: Any) -> None:
    with on_ray.http() as http:
        answer = http.post(
            "/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": str(adapters / "alpha")}
        )
        assert answer.status_code == 200, answer.text
        served: set[str] = set()
        deadline = monotonic() + 20
        with ThreadPoolExecutor(4) as pool:  # together, so that both replicas are asked
            while len(served) < 2 and monotonic() < deadline:
                for listed in pool.map(lambda _: http.get("/v1/models"), range(8)):
                    if '"new"' in listed.text:
                        served.add(listed.headers["x-manylora-replica"])
        assert len(served) == 2
        assert http.delete("/v1/adapters/new").status_code == 200


def test_one_scrape_has_every_replica(on_ray: RayApplication) -> None:
    with on_ray.http() as http:
        answer = http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    replicas = {sample.labels["replica"] for sample in families["manylora_requests_running"].samples}
    assert replicas == {replica["id"] for replica in on_ray.replicas()}
    assert answer.headers["content-type"].startswith("text/plain")
