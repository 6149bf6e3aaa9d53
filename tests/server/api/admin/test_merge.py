"""Merged copies over HTTP: made, used beside everything else, measured, freed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.kernels.weights import MergedWeights
from tests.support.expert_adapters import BOTH, write_stacked
from tests.support.running_server import Running, serving, tiny_service
from tests.support.served_adapters import ADAPTERS
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

MESSAGES: list[Any] = [{"role": "user", "content": "Merge me"}]
ROUTE = "/v1/adapters/{}/merge"


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The shared server, without copies before and after."""
    yield shared
    shared.wait_until_idle()
    variants = shared.service.adapters.variants
    assert variants is not None
    for variant in variants.list():
        shared.call(variants.free(variant, 10.0))
    assert variants.nbytes == 0


def ask(server: Running, model: str, **options: Any) -> tuple[str, str]:
    """The greedy answer, and the model that gave it."""
    answer = server.client().chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=24, temperature=0, **options
    )
    return answer.choices[0].message.content or "", answer.model


def test_a_stream_holds_its_copy_to_the_end(server: Running) -> None:
    with server.http() as http:
        assert http.post(ROUTE.format("alpha")).status_code == 200
    variants = server.service.adapters.variants
    assert variants is not None
    (variant,) = variants.list()
    stream = server.client().chat.completions.create(
        model="alpha@merged", messages=MESSAGES, max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert variant.references == 1
    stream.close()
    server.wait_until_idle()
    assert variant.references == 0


def test_a_merged_adapter_answers_like_the_adapter(server: Running) -> None:
    expected, _ = ask(server, "alpha")
    with server.http() as http:
        made = http.post(ROUTE.format("alpha"))
        assert made.status_code == 200, made.text
        body = made.json()
        assert body["state"] == "ready"
        assert body["bytes"] > 0
        assert (body["dtype"], body["base_quantization"]) == ("float32", "none")
        assert body["measured"]["rows"] > 20
        assert body["measured"]["top1_agreement"] == 1.0
        assert 0 <= body["measured"]["max_logit_difference"] < 1e-5
        assert http.get(ROUTE.format("alpha")).json()["of"] == body["of"]
        text, model = ask(server, "alpha@merged")
        assert text == expected
        revision = body["of"].partition("@")[2]
        assert model == f"alpha@{revision}.merged"
        assert ask(server, model)[0] == expected
        freed = http.delete(ROUTE.format("alpha")).json()
        assert freed == {"bytes_freed": body["bytes"], "drained": True, "running": 0}
        gone = http.post("/v1/chat/completions", json={"model": "alpha@merged", "messages": MESSAGES})
        assert gone.status_code == 404
        assert "no merged copy of 'alpha'; POST /v1/adapters/alpha/merge" in gone.json()["error"]["message"]


def test_a_merged_mix_answers_like_the_mix(server: Running) -> None:
    expected, _ = ask(server, "alpha*0.5+beta*-0.25")
    with server.http() as http:
        made = http.post(ROUTE.format("alpha*0.5+beta*-0.25"))
        assert made.status_code == 200, made.text
    assert ask(server, "beta@merged*-0.25+alpha@merged*0.5")[0] == expected


def test_copies_run_beside_streams_of_everything_else(server: Running) -> None:
    models = ["tiny", "alpha", "beta", "gamma", "alpha*0.5+gamma"]
    models[0] = server.service.model_name
    expected = {model: ask(server, model)[0] for model in models}

    async def stream(model: str) -> str:
        async with server.async_client() as client:
            chunks = await client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=24, temperature=0, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])

    async def all_of_it() -> None:
        async with server.async_client() as client:
            for _ in range(3):
                asked = [*models * 3, "beta"]
                running = [asyncio.create_task(stream(model)) for model in asked]
                assert len(running) == 16
                made = await client.post(ROUTE.format("beta")[3:], cast_to=object)
                assert made["state"] == "ready"  # type: ignore[index]
                running += [asyncio.create_task(stream("beta@merged")) for _ in range(3)]
                answers = await asyncio.gather(*running)
                assert answers == [expected[m] for m in asked] + [expected["beta"]] * 3
                await client.delete(ROUTE.format("beta")[3:], cast_to=object)

    asyncio.run(all_of_it())


@pytest.mark.sweep
def test_fifty_copies_leave_nothing_behind(server: Running) -> None:
    decoder = server.service.core.decoder
    before = [decoder.weight(module).clone() for module in range(len(decoder.modules))]
    variants = server.service.adapters.variants
    assert variants is not None
    made: list[weakref.ref[MergedWeights]] = []
    with server.http() as http:
        for i in range(50):
            name = ADAPTERS[i % len(ADAPTERS)]
            assert http.post(ROUTE.format(name)).status_code == 200
            made.append(weakref.ref(variants.list()[0].weights))
            assert http.delete(ROUTE.format(name)).json()["drained"] is True
    assert all(torch.equal(decoder.weight(m), weight) for m, weight in enumerate(before))
    assert variants.nbytes == 0
    gc.collect()
    assert not any(weights() for weights in made), "nothing keeps the weights of a freed copy"


def test_without_waiting_the_state_is_polled(server: Running) -> None:
    with server.http() as http:
        begun = http.post(ROUTE.format("gamma"), params={"wait": "false"})
        assert begun.status_code in {200, 202}
        assert http.post(ROUTE.format("gamma")).json()["state"] == "ready"
        assert http.get(ROUTE.format("gamma")).json()["progress"] == 1.0


def test_a_copy_that_is_freed_while_it_is_waited_for(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = repeat(0.0)  # progress of a copy that never gets done
    monkeypatch.setattr("manylora.server.merged.variants.merge", lambda *_: endless)
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.post, ROUTE.format("gamma"))
        while http.get(ROUTE.format("gamma")).status_code == 404:
            pass
        assert http.delete(ROUTE.format("gamma")).status_code == 200
        answer = waiting.result()
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "name", "status", "text"),
    [
        ("POST", "nobody", 404, "nobody"),
        ("GET", "alpha", 404, "no merged copy"),
        ("DELETE", "alpha", 404, "no merged copy"),
        ("POST", "alpha@merged", 400, "merged copy already"),
        ("POST", "alpha*0", 400, "base model"),
        ("POST", "alpha*99", 400, "weight"),
        ("POST", "-", 400, "-"),
    ],
)
def test_what_can_not_be_merged(server: Running, method: str, name: str, status: int, text: str) -> None:
    with server.http() as http:
        answer = http.request(method, ROUTE.format(name))
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "name"


def test_half_merged_mixes_are_refused(server: Running) -> None:
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "alpha@merged+beta", "messages": MESSAGES})
    assert answer.status_code == 400
    assert "'beta'" in answer.json()["error"]["message"]


def test_copies_idle_longest_make_room(model: Path, adapters: Path, tmp_path: Path) -> None:
    options = {"adapter": {n: adapters / n for n in ADAPTERS}, "merge_memory": 600_000}
    with serving(tiny_service(model, tmp_path, **options)) as running, running.http() as http:
        size = http.post(ROUTE.format("alpha")).json()["bytes"]
        fit = 600_000 // size
        assert 1 <= fit <= 2, f"one copy takes {size} bytes"
        for name in ("beta", "gamma"):
            assert http.post(ROUTE.format(name)).status_code == 200
        assert http.get(ROUTE.format("alpha")).status_code == 404
        assert http.get(ROUTE.format("gamma")).json()["state"] == "ready"


def test_a_copy_that_can_not_fit_is_refused(model: Path, adapters: Path, tmp_path: Path) -> None:
    options = {"adapter": {"alpha": adapters / "alpha"}, "merge_memory": 1000}
    with serving(tiny_service(model, tmp_path, **options)) as running, running.http() as http:
        answer = http.post(ROUTE.format("alpha"))
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "adapter_too_large"
        assert "--merge-memory" in answer.json()["error"]["message"]


def test_an_adapter_on_experts_is_merged(tmp_path: Path) -> None:
    """Experts and all; the answers are those of the unmerged one."""
    model = tiny_model(tmp_path / "moe", "qwen3_moe")
    path = write_stacked(
        tmp_path / "experts", model, {"target_parameters": BOTH, "target_modules": ["q_proj"]}
    )
    options = {"adapter": {"experts": path}}
    with serving(tiny_service(model, tmp_path, **options)) as running, running.http() as http:
        expected, _ = ask(running, "experts")
        assert expected != ask(running, http.get("/v1/models").json()["data"][0]["id"])[0]
        made = http.post(ROUTE.format("experts"))
        assert made.status_code == 200, made.text
        assert made.json()["measured"]["max_logit_difference"] < 1e-4
        assert made.json()["bytes"] > 4 * 2 * 8 * 3 * 48 * 64  # every expert of both layers, in float32
        assert ask(running, "experts@merged")[0] == expected
