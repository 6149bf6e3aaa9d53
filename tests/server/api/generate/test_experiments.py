"""A/B tests in traffic: what clients see of each arm's answers is what the server says of the arm."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from manylora.server.engine.engine import Engine
from tests.support.admin_client import Admin, error_of
from tests.support.raw_requests import connect
from tests.support.running_server import Running, serving, tiny_service
from tests.support.waiting import until

pytestmark = pytest.mark.slow

SPLIT = {"split": [{"target": "alpha", "share": 1}, {"target": "beta", "share": 1}]}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, adapters: Path) -> dict[str, Any]:
    """A server that computes few tokens a step, so that a client can leave in between."""
    names = {name: adapters / name for name in ("alpha", "beta")}
    return {"data_dir": tmp_path_factory.mktemp("data"), "adapter": names, "max_batch_tokens": 16}


@pytest.fixture(scope="module")
def running(model: Path, options: dict[str, Any]) -> Iterator[Running]:
    with serving(tiny_service(model, **options)) as running:
        yield running


@pytest.fixture
def server(running: Running) -> Iterator[Running]:
    assert Admin(running).ask("PUT", "/v1/aliases/test", json=SPLIT).status_code == 200
    yield running
    Admin(running).ask("DELETE", "/v1/aliases/test")
    running.wait_until_idle()


def show(server: Running, alias: str = "test") -> Any:
    answer = Admin(server).ask("GET", f"/v1/aliases/{alias}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def arms(server: Running) -> dict[str, Any]:
    return {arm["target"]: arm for arm in show(server)["arms"]}


def counts(server: Running, measure: str) -> dict[str, Any]:
    return {target: arm[measure] for target, arm in arms(server).items()}


def feedback(server: Running, response_id: str, score: Any) -> Any:
    return Admin(server).ask("POST", "/v1/feedback", json={"response_id": response_id, "score": score})


def metric(server: Running, name: str) -> dict[tuple[str, ...], float]:
    """The series of a metric of arms, by the values of its labels."""
    text = server.service.metrics.exposition()[0].decode()
    found = {}
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.startswith(f"manylora_arm_{name}{{"):
            found[tuple(part.split('"')[1] for part in head.partition("{")[2].split(","))] = float(value)
    return found


def test_the_arms_are_what_clients_see(server: Running) -> None:
    """Streams and whole answers, chats and texts, several answers, several prompts, sticky users."""
    client = server.client()
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    scores: dict[str, list[float]] = defaultdict(list)
    for i in range(16):
        user = f"user-{i}"
        arm, response_id, answers = "", "", 1 + i % 2
        if i % 4 < 2:
            whole = client.chat.completions.create(model="test", user=user, n=answers, **CHAT)
            arm, response_id, usage = whole.model.split("@")[0], whole.id, whole.usage
        elif i % 4 == 2:
            for chunk in client.chat.completions.create(
                model="test", user=user, stream=True, stream_options={"include_usage": True}, **CHAT
            ):
                arm, response_id, usage = chunk.model.split("@")[0], chunk.id, chunk.usage
            answers = 1
        else:
            texts = client.completions.create(model="test", user=user, prompt=["one", "three"], max_tokens=2)
            arm, response_id, usage = texts.model.split("@")[0], texts.id, texts.usage
            answers = 2
        assert usage is not None
        seen[arm].update(
            requests=1, answers=answers, prompt=usage.prompt_tokens, completion=usage.completion_tokens
        )
        if i % 3:
            scored = feedback(server, response_id, i % 2)
            assert scored.status_code == 200, scored.text
            assert (scored.json()["alias"], scored.json()["arm"]) == ("test", arm)
            scores[arm].append(i % 2)
    assert set(seen) == {"alpha", "beta"}
    for target, arm_json in arms(server).items():
        expected = seen[target]
        assert (arm_json["requests"], arm_json["answers"]) == (expected["requests"], expected["answers"])
        reasons = arm_json["finish_reasons"]
        assert reasons["stop"]["count"] + reasons["length"]["count"] == expected["answers"]
        assert reasons["abort"]["count"] == reasons["error"]["count"] == 0
        assert reasons["abort"]["rate"] == 0
        tokens, prompts = arm_json["completion_tokens"], arm_json["prompt_tokens"]
        assert tokens["mean"] * tokens["count"] == pytest.approx(expected["completion"])
        assert prompts["mean"] * prompts["count"] == pytest.approx(expected["prompt"])
        assert tokens["count"] == arm_json["request_seconds"]["count"] == expected["answers"]
        first, whole_time = arm_json["time_to_first_token_seconds"], arm_json["request_seconds"]
        assert 0 < first["mean"] < whole_time["mean"] < 30
        assert 0 < arm_json["inter_token_seconds"]["mean"] < whole_time["mean"]
        given = scores[target]
        assert arm_json["score"]["count"] == len(given)
        assert arm_json["score"]["mean"] == pytest.approx(sum(given) / len(given))
        low, high = arm_json["score"]["interval"]
        assert 0 <= low < arm_json["score"]["mean"] < high <= 1 or len(set(given)) == 1


def test_differences_wait_for_ten_of_each(server: Running) -> None:
    client = server.client()
    ids: dict[str, list[str]] = defaultdict(list)
    while min(len(ids["alpha"]), len(ids["beta"])) < 10:
        made = client.completions.create(model="test", prompt="x", max_tokens=2)
        ids[made.model.split("@")[0]].append(made.id)
    for target, good in (("alpha", 0), ("beta", 1)):
        for response_id in ids[target][:9]:
            feedback(server, response_id, good)
    (apart,) = show(server)["differences"]
    assert (apart["target"], apart["baseline"], apart["score"]) == ("beta", "alpha", None)
    assert apart["completion_tokens"]["interval"][0] <= apart["completion_tokens"]["difference"]
    for target, good in (("alpha", 0), ("beta", 1)):
        feedback(server, ids[target][9], good)
    (apart,) = show(server)["differences"]
    assert apart["score"]["difference"] == 1
    assert 0.5 < apart["score"]["interval"][0] < 1
    assert set(apart["finish_reasons"]) == {"stop", "length", "abort", "error"}


def test_what_does_not_count(server: Running) -> None:
    client = server.client()
    for model in ("test*0.5", "test+alpha*0.1", "alpha", "tiny"):
        client.completions.create(model=model, prompt="x", max_tokens=1)
    compared = Admin(server).ask(
        "POST", "/v1/compare", json={"targets": ["tiny", "test"], "prompt": "x", "max_tokens": 2}
    )
    assert compared.status_code == 200, compared.text
    refused = Admin(server).ask(
        "POST", "/v1/completions", json={"model": "test", "prompt": "x", "max_tokens": 10**6}
    )
    assert refused.status_code == 400
    assert counts(server, "requests") == counts(server, "answers") == {"alpha": 0, "beta": 0}
    client.completions.create(
        model="tiny", prompt="x", max_tokens=1, extra_body={"adapters": [{"name": "test", "weight": 1}]}
    )
    assert sum(counts(server, "requests").values()) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(server: Running, stream: bool) -> None:
    Admin(server).ask("PUT", "/v1/aliases/test", json={"target": "alpha"})
    body = {"model": "test", "prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": stream, "n": 2}

    running = server.service.core.scheduler.running
    with closing(connect(server, "/v1/completions", body)):
        server.call(until(lambda: any(s.num_output_tokens > 3 for s in running)))
    server.wait_until_idle()
    (arm,) = show(server)["arms"]
    assert arm["finish_reasons"]["abort"]["count"] == arm["answers"] == 2
    assert arm["time_to_first_token_seconds"]["count"] >= 1
    assert arm["completion_tokens"]["count"] == arm["request_seconds"]["count"] == 0


def test_a_step_that_fails(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine) -> Any:
        raise RuntimeError("no")

    Admin(server).ask("PUT", "/v1/aliases/test", json={"target": "alpha"})
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "advance", fail)
        failed = Admin(server).ask("POST", "/v1/completions", json={"model": "test", "prompt": "x"})
    assert failed.status_code == 500
    (arm,) = show(server)["arms"]
    assert arm["finish_reasons"]["error"] == {**arm["finish_reasons"]["error"], "count": 1, "rate": 1}
    assert arm["time_to_first_token_seconds"] == {
        "count": 0,
        "mean": None,
        "interval": None,
        "method": None,
        "p50": None,
        "p95": None,
    }


def test_metrics_by_arm(server: Running) -> None:
    Admin(server).ask("PUT", "/v1/aliases/test", json={"target": "alpha"})
    made = server.client().completions.create(model="test", prompt="x", max_tokens=4, n=2)
    feedback(server, made.id, 0.25)
    arm = ("test", "alpha")
    assert metric(server, "requests_total") == {arm: 1}
    answers = metric(server, "answers_total")
    assert {key[:2] for key in answers} == {arm}
    assert sum(answers.values()) == 2
    assert metric(server, "scores") == {arm: 1}
    assert metric(server, "score_points") == {arm: 0.25}
    assert metric(server, "time_to_first_token_seconds_count") == {arm: 2}
    assert metric(server, "request_seconds_sum")[arm] > 0
    Admin(server).ask("PUT", "/v1/aliases/test", json={"target": "beta"})
    assert metric(server, "requests_total") == {}
    server.client().completions.create(model="test", prompt="x", max_tokens=1)
    assert metric(server, "requests_total") == {("test", "beta"): 1}
    Admin(server).ask("DELETE", "/v1/aliases/test")
    assert metric(server, "requests_total") == metric(server, "request_seconds_sum") == {}


def test_an_alias_that_changes(server: Running) -> None:
    admin = Admin(server)
    made = [server.client().completions.create(model="test", prompt="x", max_tokens=1) for _ in range(8)]
    before = counts(server, "requests")
    assert sum(before.values()) == 8
    shares = {"split": [{"target": "alpha", "share": 9}, {"target": "beta", "share": 1}]}
    admin.ask("PUT", "/v1/aliases/test", json=shares)
    assert counts(server, "requests") == before
    assert counts(server, "share") == {"alpha": 0.9, "beta": 0.1}
    admin.ask("PUT", "/v1/aliases/test", json={"target": "alpha"})
    for answer in made:
        scored = feedback(server, answer.id, 1).json()
        arm = answer.model.split("@")[0]
        assert (scored["model"], scored["arm"]) == (answer.model, "alpha" if arm == "alpha" else None)
    admin.ask("PUT", "/v1/aliases/test", json=SPLIT)
    assert counts(server, "requests") == {"alpha": before["alpha"], "beta": 0}
    assert counts(server, "score")["alpha"]["count"] == before["alpha"]
    admin.ask("PUT", "/v1/aliases/test", json={**SPLIT, "reset": True})
    assert counts(server, "requests") == {"alpha": 0, "beta": 0}
    admin.ask("DELETE", "/v1/aliases/test")
    admin.ask("PUT", "/v1/aliases/test", json=SPLIT)
    assert counts(server, "requests") == {"alpha": 0, "beta": 0}


def test_scores(server: Running) -> None:
    made = server.client().completions.create(model="alpha", prompt="x", max_tokens=1)
    before = Admin(server).get("/alpha")["traffic"]
    first = feedback(server, made.id, 1)
    assert first.json() == {
        "object": "feedback",
        "response_id": made.id,
        "score": 1.0,
        "previous_score": None,
        "model": made.model,
        "alias": None,
        "arm": None,
    }
    assert feedback(server, made.id, 0.5).json()["previous_score"] == 1
    after = Admin(server).get("/alpha")["traffic"]
    assert after["scores"] == before["scores"] + 1
    points = after["mean_score"] * after["scores"] - (before["mean_score"] or 0) * before["scores"]
    assert points == pytest.approx(0.5)


@pytest.mark.parametrize("score", ["-0.1", "1.1", '"1"', "null", "true", "[1]", "NaN", "Infinity", "1e999"])
def test_scores_that_are_none(server: Running, score: str) -> None:
    with server.http() as http:
        answer = http.post("/v1/feedback", content=f'{{"response_id": "x", "score": {score}}}')
    assert error_of(answer)[::2] == (400, "score")


def test_answers_that_nobody_gave(server: Running) -> None:
    assert error_of(feedback(server, "chatcmpl-0", 1)) == (404, "answer_not_found", "response_id")
    assert error_of(feedback(server, "x" * 129, 1))[::2] == (400, "response_id")


@pytest.mark.sweep
def test_counts_survive_a_restart(model: Path, options: dict[str, Any], tmp_path: Path) -> None:
    own = {**options, "data_dir": tmp_path}
    with serving(tiny_service(model, **own)) as first:
        Admin(first).ask("PUT", "/v1/aliases/test", json=SPLIT)
        made = [first.client().completions.create(model="test", prompt="x", max_tokens=2) for _ in range(6)]
        feedback(first, made[0].id, 1)
    with serving(tiny_service(model, **own)) as second:
        assert metric(second, "requests_total") == {}, "its own, since it started"
        assert error_of(feedback(second, made[0].id, 1))[0] == 404
        second.client().completions.create(model="test", prompt="x", max_tokens=2)
        assert sum(counts(second, "requests").values()) == 7
        assert sum(arm["count"] for arm in counts(second, "score").values()) == 1
        assert sum(arm["count"] for arm in counts(second, "request_seconds").values()) == 7
