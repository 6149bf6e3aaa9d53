"""Composing adapters over HTTP: the result is an adapter like any other, and its making is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.running_server import Running

ROUTE = "/v1/adapters/both/compose"
MEMBERS = [{"name": "alpha", "weight": 0.5}, {"name": "beta", "weight": -0.25}]


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    yield shared
    shared.wait_until_idle()
    with shared.http() as http:
        http.delete("/v1/adapters/both")


def ask(server: Running, model: str) -> str:
    answer = server.client().completions.create(model=model, prompt="Compose", max_tokens=24, temperature=0)
    return answer.choices[0].text


def test_a_linear_composition_answers_like_the_mix(server: Running) -> None:
    with server.http() as http:
        made = http.post(ROUTE, params={"wait": "true"}, json={"members": MEMBERS, "tags": ["made"]})
        assert made.status_code == 201, made.text
        body = made.json()
        assert body["tags"] == ["made"]
        lineage = body["revisions"][0]["lineage"]
        assert lineage["method"] == "linear"
        assert {m["name"]: m["weight"] for m in lineage["members"]} == {"alpha": 0.5, "beta": -0.25}
        again = http.post(ROUTE, params={"wait": "true"}, json={"members": MEMBERS})
        assert again.status_code == 200
        assert len(again.json()["revisions"]) == 1
    assert ask(server, "both") == ask(server, "alpha*0.5+beta*-0.25") != ask(server, "alpha")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"method": "svd", "rank": 4},
        {"method": "ties", "rank": 8, "density": 0.4, "sign_method": "frequency"},
        {"method": "dare_linear", "rank": 8, "seed": 7},
        {"method": "magnitude_prune", "rank": 8},
    ],
    ids=lambda how: how["method"],
)
def test_every_method_makes_an_adapter_that_peft_loads(
    server: Running, how: dict[str, Any], model: Path
) -> None:
    with server.http() as http:
        made = http.post(ROUTE, params={"wait": "true"}, json={"members": MEMBERS, **how})
    assert made.status_code == 201, made.text
    store: Path = server.service.store.path(server.service.adapters.views.status("both").digest or "")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), store)
    assert loaded.peft_config["default"].r <= how["rank"]
    assert ask(server, "both") != ask(server, server.service.model_name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"members": [{"name": "alpha"}, {"name": "nobody"}]}, 404, "members[1].name", "nobody"),
        ({"members": []}, 400, "members", ""),
        ({"members": [{"name": "alpha+beta"}]}, 400, "members[0].name", "one adapter"),
        ({"members": [{"name": "alpha", "weight": 99}]}, 400, "members[0].weight", "alpha"),
        ({"members": MEMBERS, "method": "average"}, 400, "method", "average"),
        ({"members": MEMBERS, "method": "svd"}, 400, "rank", "rank"),
        ({"members": MEMBERS, "density": 0.5}, 400, "density", "density"),
        ({"members": MEMBERS, "color": "red"}, 400, "color", "color"),
        ({"members": [{"name": "alpha"}, {"name": "alpha", "weight": -1.0}]}, 422, "members", ""),
    ],
)
def test_what_can_not_be_composed(
    server: Running, body: dict[str, Any], status: int, param: str, text: str
) -> None:
    with server.http() as http:
        answer = http.post(ROUTE, params={"wait": "true"}, json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == param
        assert text in answer.json()["error"]["message"]
        assert http.post("/v1/completions", json={"model": "both", "prompt": "x"}).status_code == 404
