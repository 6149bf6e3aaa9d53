"""``/v1/batches``: many requests of a file, beside live ones, across crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

USER = {"role": "user", "content": "Hi"}
ENDED = ("completed", "failed", "cancelled", "expired")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("alpha") / "alpha", model)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapter: Path) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter={"alpha": adapter})
    with serving(service) as server:
        yield server


def line(number: int, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    default = {"model": "alpha", "prompt": f"text {number}", "max_tokens": 4, "temperature": 0}
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": {**default, **body}}


def packed(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def begin(running: Running, content: bytes, endpoint: Any = "/v1/completions", **options: Any) -> Any:
    client = running.client()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        **options,
    )


def ended(running: Running, batch: Any) -> Any:
    client = running.client()
    wait_until(lambda: client.batches.retrieve(batch.id).status in ENDED)
    return client.batches.retrieve(batch.id)


def done(client: openai.OpenAI, batch: Any) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    return 0 if counts is None else counts.completed


def results(running: Running, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    text = running.client().files.content(file_id).text
    return {each["custom_id"]: each for each in map(json.loads, text.splitlines())}


def test_every_line_is_answered_as_it_would_be_alone(running: Running) -> None:
    base = running.service.model_name
    lines = [line(i, model=["alpha", base, "alpha*0.5"][i % 3]) for i in range(30)]
    batch = ended(running, begin(running, packed(lines), metadata={"for": "tests"}))
    assert batch.status == "completed"
    assert batch.metadata == {"for": "tests"}
    assert (batch.request_counts.total, batch.request_counts.completed) == (30, 30)
    assert batch.error_file_id is None
    found = results(running, batch.output_file_id)
    assert found.keys() == {each["custom_id"] for each in lines}
    with running.http() as http:
        for each in lines[:6]:
            body = found[each["custom_id"]]["response"]["body"]
            alone = http.post("/v1/completions", json=each["body"]).json()
            assert body["choices"] == alone["choices"]
            assert body["model"] == alone["model"]


def test_what_fails_goes_into_the_file_of_errors(running: Running) -> None:
    lines = [line(0), line(1, model="nobody"), line(2, colour="red")]
    batch = ended(running, begin(running, packed(lines)))
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
    assert results(running, batch.output_file_id).keys() == {"r0"}
    errors = results(running, batch.error_file_id)
    assert errors["r1"]["response"]["status_code"] == 404
    assert errors["r1"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert errors["r2"]["response"]["body"]["error"]["param"] == "colour"


def test_embeddings_are_batched_as_well(running: Running) -> None:
    lines = [
        {
            "custom_id": "e",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "alpha", "input": "a"},
        }
    ]
    batch = ended(running, begin(running, packed(lines), "/v1/embeddings"))
    answer = results(running, batch.output_file_id)["e"]["response"]["body"]
    assert answer["data"][0]["object"] == "embedding"


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"model": "alpha", "input": "Hi", "max_output_tokens": 4, "temperature": 0}),
        ("/v1/messages", {"model": "alpha", "messages": [USER], "max_tokens": 4, "temperature": 0}),
        ("/v1/chat/completions", {"model": "alpha", "messages": [USER], "max_tokens": 4, "temperature": 0}),
    ],
)
def test_other_shapes_of_conversations(running: Running, endpoint: str, body: dict[str, Any]) -> None:
    lines = [
        {"custom_id": "right", "method": "POST", "url": endpoint, "body": body},
        {"custom_id": "wrong", "method": "POST", "url": endpoint, "body": {**body, "model": "nobody"}},
    ]
    batch = ended(running, begin(running, packed(lines), endpoint))
    answer = results(running, batch.output_file_id)["right"]["response"]
    assert answer["status_code"] == 200
    with running.http() as http:
        alone = http.post(endpoint, json=body).json()
        if endpoint == "/v1/responses":
            kept = http.get(f"/v1/responses/{answer['body']['id']}").json()
            assert kept == answer["body"]
    told = ("content", "choices", "stop_reason", "status", "type", "model")
    assert {k: answer["body"].get(k) for k in told} == {k: alone.get(k) for k in told}
    assert results(running, batch.error_file_id)["wrong"]["response"]["status_code"] == 404


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"\n\n", "empty_file"),
        (b"{\n", "invalid_json_line"),
        (b"[" * 5000 + b"\n", "invalid_json_line"),
        (b"\xff\xfe\n", "invalid_json_line"),
        (b"[1]\n", "invalid_json_line"),
        (packed([{**line(0), "custom_id": 5}]), "missing_required_parameter"),
        (packed([line(0), line(0)]), "duplicate_custom_id"),
        (packed([{**line(0), "method": "GET"}]), "invalid_method"),
        (packed([line(0, "/v1/adapters")]), "invalid_url"),
        (packed([line(0, "/v1/chat/completions")]), "mismatched_endpoint"),
        (packed([{**line(0), "body": "text"}]), "missing_required_parameter"),
        (packed([line(0, stream=True)]), "invalid_request"),
        (packed([line(0, "/v1/responses", background=True)]), "invalid_request"),
        (packed([line(0, prompt="x" * (5 << 20))]), "line_too_long"),
    ],
)
def test_a_file_that_is_none_of_requests_fails_as_a_whole(
    running: Running, content: bytes, code: str
) -> None:
    batch = ended(running, begin(running, content))
    assert batch.status == "failed"
    assert batch.errors.data[0].code == code
    assert batch.output_file_id is None


@pytest.mark.sweep
def test_a_batch_is_cancelled_and_keeps_what_it_has(running: Running) -> None:
    client = running.client()
    batch = begin(running, packed([line(i, max_tokens=400, ignore_eos=True) for i in range(200)]))
    wait_until(lambda: done(client, batch) > 0)
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(running, batch)
    assert batch.status == "cancelled"
    answered = batch.request_counts.completed
    assert 0 < answered < 200
    assert len(results(running, batch.output_file_id)) == answered
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted


def test_batches_are_listed_newest_first(running: Running) -> None:
    client = running.client()
    made = [begin(running, packed([line(0)])).id for _ in range(3)]
    listed = client.batches.list(limit=2)
    assert [batch.id for batch in listed.data] == made[:0:-1]
    assert listed.has_more
    assert [batch.id for batch in client.batches.list(limit=1, after=made[1]).data] == made[:1]
    for batch in made:
        ended(running, client.batches.retrieve(batch))


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"endpoint": "/v1/adapters"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"a": "b" * 600}}, 400, "metadata.a"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
def test_batches_that_mean_nothing_are_refused(
    running: Running, body: dict[str, Any], status: int, param: str
) -> None:
    file = running.client().files.create(file=("in.jsonl", packed([line(0)])), purpose="batch")
    whole = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h", **body}
    with running.http() as http:
        answer = http.post("/v1/batches", json=whole)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_files_of_other_purposes_are_refused(running: Running) -> None:
    client = running.client()
    file = client.files.create(file=("in.jsonl", packed([line(0)])), purpose="user_data")
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")


def test_a_batch_goes_on_where_a_server_stopped(tmp_path: Path, model: Path, adapter: Path) -> None:
    lines = [line(i, max_tokens=60, ignore_eos=True) for i in range(60)]
    options = {"adapter": {"alpha": adapter}, "max_num_seqs": 4}
    with serving(tiny_service(model, tmp_path, **options)) as first:
        batch = begin(first, packed(lines))
        wait_until(lambda: done(first.client(), batch) >= 5)
    partial = tmp_path / "files" / f".{batch.id}.out"
    whole = partial.read_bytes()
    assert 0 < whole.count(b"\n") < 60
    partial.write_bytes(whole + b'{"id": "half')
    with serving(tiny_service(model, tmp_path, **options)) as second:
        found = ended(second, batch)
        assert found.status == "completed"
        assert found.request_counts.completed == 60
        text = second.client().files.content(found.output_file_id).text
    assert text.encode().startswith(whole), "what was answered is not asked again"
    assert len(text.splitlines()) == 60
