"""``--auto-merge`` over HTTP: who answers, what it says, and that it gives way. Looks are made by hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from manylora.server.merged.auto_merge import LOOKS
from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.served_adapters import ADAPTERS

MESSAGES: list[Any] = [{"role": "user", "content": "Who answers?"}]
ROUTE = "/v1/adapters/{}/merge"
OPTIONS = {"auto_merge": True, "auto_merge_seconds": 86400.0, "auto_merge_sequences": 2.0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    alora = write_adapter(
        tmp_path_factory.mktemp("alora") / "late", model, targets=("q_proj",), alora_invocation_tokens=[1, 2]
    )
    known = {name: adapters / name for name in ADAPTERS} | {"late": alora}
    service = tiny_service(
        model, tmp_path_factory.mktemp("data"), adapter=known, merge_memory=400_000, **OPTIONS
    )
    with serving(service) as running:
        yield running


@pytest.fixture
def server(running: Running) -> Iterator[Running]:
    """Nobody leads before and after."""
    yield running
    look(running, LOOKS)
    running.wait_until_idle()
    variants = running.service.adapters.variants
    assert variants is not None
    for variant in variants.list():
        running.call(variants.free(variant, 10.0))
    assert variants.nbytes == 0


def look(server: Running, times: int) -> None:
    auto_merge = server.service.adapters.auto_merge
    assert auto_merge is not None

    async def looks() -> None:
        for _ in range(times):
            await auto_merge.look()

    server.call(looks())


@contextmanager
def streams(server: Running, model: str, count: int) -> Iterator[None]:
    """So many answers that go on until the block ends."""
    options: dict[str, Any] = {"max_tokens": 1900, "stream": True, "extra_body": {"ignore_eos": True}}
    with ExitStack() as stack:
        stack.callback(server.wait_until_idle)
        for _ in range(count):
            stream = server.client().chat.completions.create(
                model=model, messages=MESSAGES, temperature=0, **options
            )
            stack.callback(stream.close)
            next(iter(stream))
        yield


def ask(server: Running, model: str) -> tuple[str, str]:
    """The greedy answer, and the model that gave it, which the header names as well."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.json()["model"] == answer.headers["x-manylora-model"]
    return answer.json()["choices"][0]["message"]["content"], answer.json()["model"]


def test_what_most_answers_are_for_is_merged_and_freed(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="manylora.server.merged.auto_merge")
    expected, plain = ask(server, "alpha")
    with server.http() as http, streams(server, "alpha", 3):
        look(server, LOOKS - 1)
        assert http.get(ROUTE.format("alpha")).status_code == 404
        look(server, 1)
        copy = http.get(ROUTE.format("alpha")).json()
        assert (copy["state"], copy["automatic"], copy["of"]) == ("ready", True, plain)
        assert copy["running"] == 0, "answers that run are left alone"
        assert ask(server, "alpha") == (expected, f"{plain}.merged")
        assert ask(server, plain) == (expected, f"{plain}.merged")
        assert ask(server, "alpha@merged") == (expected, f"{plain}.merged")
        assert ask(server, "alpha*0.5")[1] == f"{plain}*0.5"
        assert ask(server, "beta")[1].startswith("beta@")
        assert ask(server, "tiny")[1] == "tiny"
        compared = http.post(
            "/v1/compare", json={"targets": ["alpha", "alpha@merged"], "messages": MESSAGES, "max_tokens": 4}
        ).json()
        assert [target["model"] for target in compared["targets"]] == [plain, f"{plain}.merged"]
        metrics = http.get("/metrics").text
        assert "manylora_merged_copies 1.0" in metrics
        assert f"manylora_merged_copies_bytes {copy['bytes']}.0" in metrics
        assert "manylora_auto_merges_total 1.0" in metrics
    look(server, LOOKS)
    with server.http() as http:
        assert http.get(ROUTE.format("alpha")).status_code == 404
        assert "manylora_merged_copies 0.0" in http.get("/metrics").text
    assert ask(server, "alpha") == (expected, plain)
    said = [record.getMessage() for record in caplog.records]
    assert "is merged, as 100% of the answers are its" in said[0]
    assert "is freed" in said[1]


def test_it_gives_way_to_a_copy_that_is_asked_for(server: Running) -> None:
    with server.http() as http:
        with streams(server, "alpha", 2):
            look(server, LOOKS)
            size = http.get(ROUTE.format("alpha")).json()["bytes"]
            assert 200_000 < size <= 400_000, "one copy fits"
            assert http.post(ROUTE.format("beta")).json()["automatic"] is False
            assert http.get(ROUTE.format("alpha")).status_code == 404
            look(server, LOOKS)
            assert http.get(ROUTE.format("alpha")).status_code == 404, "it takes no room from others"
        assert http.get(ROUTE.format("beta")).json()["state"] == "ready"


def test_a_copy_that_was_asked_for_stays(server: Running) -> None:
    _, plain = ask(server, "alpha")
    with server.http() as http:
        assert http.post(ROUTE.format("alpha")).status_code == 200
        assert ask(server, "alpha")[1] == plain
        with streams(server, "alpha", 2):
            look(server, LOOKS)
            assert ask(server, "alpha")[1] == f"{plain}.merged"
        look(server, LOOKS)
        assert ask(server, "alpha")[1] == plain
        assert http.get(ROUTE.format("alpha")).json()["automatic"] is False


def test_one_that_is_freed_by_hand_does_not_come_back(server: Running) -> None:
    with server.http() as http, streams(server, "alpha", 2):
        look(server, LOOKS)
        assert http.delete(ROUTE.format("alpha")).status_code == 200
        look(server, LOOKS)
        assert http.get(ROUTE.format("alpha")).status_code == 404
        assert not ask(server, "alpha")[1].endswith("merged")


def test_kinds_that_can_not_be_merged_are_left_alone(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="server")
    with server.http() as http, streams(server, "late", 2):
        look(server, LOOKS + 1)
        assert http.get(ROUTE.format("late")).status_code == 404
    assert not [r for r in caplog.records if r.name.endswith("auto_merge")]


def test_a_copy_goes_with_the_last_name_of_its_revision(server: Running, adapters: Path) -> None:
    variants = server.service.adapters.variants
    assert variants is not None
    with server.http() as http:
        server.call(server.service.adapters.admin.load("delta", adapters / "alpha"))
        server.call(server.service.adapters.admin.load("epsilon", adapters / "gamma"))
        assert http.post(ROUTE.format("delta")).status_code == 200
        assert http.delete("/v1/adapters/delta").status_code == 200
        assert len(variants.list()) == 1, "alpha is the same revision"
        assert http.delete(ROUTE.format("alpha")).status_code == 200
