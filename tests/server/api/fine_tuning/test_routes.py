"""The routes of jobs, on a server whose jobs wait for a worker that never comes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN, bearer, manager, new_key, tenant_key
from tests.support.tuning import ROWS, begin, packed, upload


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    service = service_of(data, model, adapters, admin_api_key=[ADMIN], training="external")
    with serving(service) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return running.client(api_key=ADMIN)


@pytest.fixture(scope="module")
def file(client: openai.OpenAI) -> str:
    return upload(client)


EXACT = {"type": "string_check", "name": "exact", "input": "{{sample.output_text}}", "operation": "eq",
         "reference": "{{item.reference_answer}}"}  # fmt: skip
JUDGE = {"type": "score_model", "name": "judge", "model": "beta", "input": [{"role": "user", "content": "?"}]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size"),
    ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size"),
    ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
    ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51}}}},
     "method.supervised.hyperparameters.n_epochs"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.1}}}},
     "method.dpo.hyperparameters.beta"),
    ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
    ({"method": {"type": "reinforcement"}}, "method.type"),
    ({"method": {"type": "other"}}, "method.type"),
    ({"method": {"type": "supervised"}, "hyperparameters": {}}, "hyperparameters"),
    ({"suffix": "s" * 65}, "suffix"),
    ({"suffix": ""}, "suffix"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**31}, "seed"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ({"n_epochs": 3}, "n_epochs"),
    ({"lora": {"r": 0}}, "lora.r"),
    ({"lora": {"r": 65}}, "lora.r"),  # more than the server takes
    ({"lora": {"r": 40, "init": "olora"}}, "lora.r"),  # which comes to twice that
    ({"lora": {"rank": 8}}, "lora.rank"),
    ({"lora": {"init": "random"}}, "lora.init"),
    ({"lora": {"init": "olora", "use_dora": True}}, "lora.init"),
    ({"lora": {"target_modules": ["attention", "q_proj"]}}, "lora.target_modules"),
    ({"lora": {"dropout": 1.0}}, "lora.dropout"),
    ({"lora": {"quantization": "nf2"}}, "lora.quantization"),
    ({"model": "alpha", "lora": {"r": 8}}, "lora.r"),  # comes with the adapter
    ({"model": "alpha*0.5"}, "model"),
    ({"model": "alpha+beta"}, "model"),
    ({"validation_file": "{same}"}, "validation_file"),
    ({"early_stopping_patience": 2}, "early_stopping_patience"),  # without a validation file
    ({"early_stopping_patience": 0, "validation_file": "{same}"}, "early_stopping_patience"),
    ({"early_stopping_patience": 10, "validation_file": "{same}"}, "early_stopping_patience"),
    ({"samples": 65}, "samples"),
    ({"samples": -1}, "samples"),
    ({"samples": True}, "samples"),
    ({"samples": 1, "task": "embedding"}, "samples"),
    ({"samples": 1, "sample_tokens": 0}, "sample_tokens"),
    ({"grader": {**EXACT, "type": "python"}}, "grader.type"),
    ({"grader": {**EXACT, "input": "{{item"}}, "grader.input"),
    ({"grader": {}}, "grader.type"),
    ({"grader": []}, "grader"),
    ({"grader": {**JUDGE, "model": "nothing"}}, "grader.model"),
    ({"grader": {**JUDGE, "model": "alpha+"}}, "grader.model"),
    ({"grader": {"type": "multi", "name": "m", "graders": {"a": EXACT, "b": {**JUDGE, "model": "no"}},
                 "calculate_output": "a + b"}}, "grader.graders.b.model"),
    ({"grader": EXACT, "samples": 0}, "samples"),
    ({"grader": EXACT, "task": "classification"}, "grader"),
    ({"task": "regression"}, "task"),
    ({"task": "classification", "method": {"type": "dpo"}}, "task"),
    ({"task": "classification", "lora": {"init": "olora"}}, "lora.init"),
    ({"task": "embedding", "lora": {"init": "eva"}}, "lora.init"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[param for _, param in BAD])
def test_what_is_wrong_is_named(running: Running, file: str, fields: dict[str, Any], param: str) -> None:
    fields = {key: file if value == "{same}" else value for key, value in fields.items()}
    body = {"model": "tiny", "training_file": file, **fields}
    with running.http(headers=bearer(ADMIN)) as http:
        told = http.post("/v1/fine_tuning/jobs", json=body)
        assert told.status_code == 400, told.text
        assert told.json()["error"]["param"] == param, told.text
        assert http.get("/v1/fine_tuning/jobs?limit=100").json()["data"] == []


def test_unknown_models_and_files(client: openai.OpenAI, file: str) -> None:
    make = client.fine_tuning.jobs.create
    for name in ("nothing", "ft:tiny:local::12345678", "tiny+", "a b"):
        with pytest.raises(openai.NotFoundError) as told:
            make(model=name, training_file=file)
        assert told.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="No such File object: file-nothing") as told:
        make(model="tiny", training_file="file-nothing")
    assert told.value.param == "training_file"
    other = client.files.create(file=("a.jsonl", b"{}"), purpose="evals").id
    with pytest.raises(openai.BadRequestError, match="is for evals, not for 'fine-tune'") as refused:
        make(model="tiny", training_file=other)
    assert refused.value.param == "training_file"


def test_a_job_waits_is_paused_and_ends(running: Running, client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    job = begin(client, metadata={"a": "b"}, suffix="x y/z")
    assert (job.status, job.seed, job.organization_id) == ("validating_files", 1, "local")
    assert job.hyperparameters.n_epochs == 2
    assert job.method.supervised.hyperparameters.batch_size == 8
    with pytest.raises(openai.ConflictError, match="is needed by a fine-tuning job that has not ended"):
        client.files.delete(job.training_file)
    assert str(jobs.pause(job.id).status) == "paused"  # of the specification, not of the client's type
    with pytest.raises(openai.ConflictError, match="it is paused"):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "validating_files"
    assert jobs.cancel(job.id).status == "cancelled"
    for change in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError, match="it is cancelled"):
            change(job.id)
    client.files.delete(job.training_file)
    messages = [event.message for event in jobs.list_events(job.id)]
    assert messages == [
        "The job has been cancelled",
        "The job has been resumed",
        "The job has been paused",
        f"Created fine-tuning job: {job.id}",
    ]


def test_lists(client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    made = [begin(client, metadata={"n": str(n % 2)}, method=None).id for n in range(5)]
    page = jobs.list(limit=2)
    assert [job.id for job in page.data] == made[:2:-1]
    assert page.has_more
    assert [job.id for job in jobs.list(limit=2, after=made[3]).data] == [made[2], made[1]]
    assert [job.id for job in jobs.list(limit=2)][:5] == made[::-1]  # the client asks for page after page
    assert [job.id for job in jobs.list(metadata={"n": "1"})] == [made[3], made[1]]
    with pytest.raises(openai.BadRequestError, match="'after'"):
        jobs.list(after="ftjob-nothing")
    with pytest.raises(openai.BadRequestError) as told:
        jobs.list(extra_query={"order": "asc"})
    assert told.value.param == "order"
    for job in made:
        jobs.cancel(job)


def test_what_is_not_there(client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for name in ("ftjob-" + 32 * "0", "nothing", "../x", "ftjob-%00"):
        for ask in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError):
                ask(name)


def test_the_events_of_an_ended_job_are_streamed_to_their_end(
    running: Running, client: openai.OpenAI
) -> None:
    job = client.fine_tuning.jobs.cancel(begin(client).id)
    with running.http(headers=bearer(ADMIN)) as http:
        told = http.get(f"/v1/fine_tuning/jobs/{job.id}/events?stream=true")
    assert told.headers["content-type"].startswith("text/event-stream")
    events = told.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert [event.startswith('data: {"id":"ftevent-') for event in events] == [True, True, False]


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def test_a_request_that_is_sent_again_makes_no_second_job(
    running: Running, client: openai.OpenAI, file: str
) -> None:
    """Though its file was deleted meanwhile, and its seed was drawn."""
    make = client.fine_tuning.jobs.create
    fields: dict[str, Any] = {"model": "tiny", "training_file": file, "extra_headers": keyed("retry 1")}
    first = make(**fields)
    assert make(**fields, metadata=None).id == first.id
    client.fine_tuning.jobs.cancel(first.id)
    again = make(**fields)
    assert (again.id, again.status, again.seed) == (first.id, "cancelled", first.seed)
    for change in ({"seed": 7}, {"suffix": "x"}, {"extra_body": {"lora": {"r": 4}}}):
        with pytest.raises(openai.BadRequestError, match="was sent before, with another") as told:
            make(**{**fields, **change})
        assert (told.value.code, told.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    other = make(**{**fields, "extra_headers": keyed("retry 2")})
    assert other.id != first.id
    client.fine_tuning.jobs.cancel(other.id)
    dry = {"model": "tiny", "training_file": "file-nothing"}  # which makes no job, and keeps no key
    with running.http(headers={**bearer(ADMIN), **keyed("retry 3")}) as http:
        assert http.post("/v1/fine_tuning/jobs?dry_run=true", json=dry).status_code == 404
        assert http.post("/v1/fine_tuning/jobs", json=dry).status_code == 404
    third = make(**{**fields, "extra_headers": keyed("retry 3")})
    client.fine_tuning.jobs.cancel(third.id)
    assert len({first.id, other.id, third.id}) == 3


def test_requests_at_the_same_time_make_one_job(running: Running, client: openai.OpenAI, file: str) -> None:
    fields: dict[str, Any] = {"model": "tiny", "training_file": file, "extra_headers": keyed("at once")}
    with ThreadPoolExecutor(8) as pool:
        made = [future.result().id for future in
                [pool.submit(client.fine_tuning.jobs.create, **fields) for _ in range(8)]]  # fmt: skip
    assert len(set(made)) == 1
    folders = running.service.tuning.data_dir / "tuning"
    open_ = [job.id for job in client.fine_tuning.jobs.list() if job.status == "validating_files"]
    assert open_ == made[:1]
    left = {path.name for path in folders.glob("ftjob-*")}
    assert made[0] in left
    known = {job.id for job in client.fine_tuning.jobs.list()}
    assert left <= known
    client.fine_tuning.jobs.cancel(made[0])


@pytest.mark.parametrize("key", ["", "k" * 256, "k\tk", "schlüssel"])
def test_what_is_no_key(running: Running, file: str, key: str) -> None:
    headers: Any = [*bearer(ADMIN).items(), ("Idempotency-Key", key.encode("latin-1"))]
    with running.http(headers=headers) as http:
        told = http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file})
    assert told.status_code == 400, told.text
    assert told.json()["error"]["param"] == "Idempotency-Key"


def test_tenants_have_their_own(running: Running) -> None:
    with running.http() as http:
        acme, globex = manager(http, "acme"), manager(http, "globex")
        form = {"file": ("rows.jsonl", packed(ROWS))}
        made = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}, headers=acme).json()["id"]
        body = {"model": "tiny", "training_file": made, "suffix": "mine"}
        job = http.post("/v1/fine_tuning/jobs", json=body, headers=acme).json()
        assert job["organization_id"] == "acme"
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        for method, end in (("GET", ""), ("GET", "/events"), ("GET", "/checkpoints"), ("POST", "/cancel"),
                            ("POST", "/pause"), ("POST", "/resume")):  # fmt: skip
            told = http.request(method, path + end, headers=globex)
            assert told.status_code == 404, (method, end)
        assert http.get("/v1/fine_tuning/jobs", headers=globex).json()["data"] == []
        mine = http.post("/v1/fine_tuning/jobs", json=body, headers={**acme, **keyed("k")}).json()
        assert http.post(f"/v1/fine_tuning/jobs/{mine['id']}/cancel", headers=acme).status_code == 200
        same = http.post("/v1/fine_tuning/jobs", json=body, headers={**globex, **keyed("k")})
        assert (same.status_code, same.json()["error"]["param"]) == (404, "training_file")  # its own key
        stolen = http.post("/v1/fine_tuning/jobs", json=body, headers=globex)
        assert (stolen.status_code, stolen.json()["error"]["param"]) == (404, "training_file")
        listed = http.get("/v1/fine_tuning/jobs", headers=acme).json()["data"]
        assert [each["id"] for each in listed] == [mine["id"], job["id"]]
        asking = bearer(new_key(http, "acme")["key"])  # may ask for answers alone
        assert http.post("/v1/fine_tuning/jobs", json=body, headers=asking).status_code == 403
        assert http.post(f"{path}/cancel", headers=asking).status_code == 403
        assert http.get(path, headers=asking).status_code == 200
        no_base = manager(http, "initech", base=False)
        mine = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}, headers=no_base).json()["id"]
        told = http.post("/v1/fine_tuning/jobs", json={**body, "training_file": mine}, headers=no_base)
        assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")
        assert http.post(f"{path}/cancel", headers=acme).json()["status"] == "cancelled"
        for tenant in ("acme", "globex", "initech"):
            http.delete(f"/v1/tenants/{tenant}?adapters=true", headers=bearer(ADMIN))


def test_only_tuned_models_are_deleted_so(running: Running) -> None:
    with running.http(headers=bearer(ADMIN)) as http:
        assert http.delete("/v1/models/tiny").status_code == 400
        assert http.delete("/v1/models/alpha").status_code == 400
        assert http.get("/v1/models/alpha").status_code == 200
        for name in ("nothing", "ft:tiny:local::12345678", "a+b", "%2e%2e"):
            assert http.delete(f"/v1/models/{name}").status_code == 404, name
        tenant_key(http, "acme")
        key = bearer(new_key(http, "acme", scopes=["infer", "manage"])["key"])
    with httpx.Client(base_url=running.url, headers=key) as acme:
        assert acme.delete("/v1/models/alpha").status_code == 404


def test_without_training_nothing_is_taken(tmp_path: Path, model: Path, adapters: Path) -> None:
    with serving(service_of(tmp_path, model, adapters, training="off")) as running:
        client = running.client()
        with pytest.raises(openai.BadRequestError, match="trains no models") as told:
            client.fine_tuning.jobs.create(model="tiny", training_file=upload(client))
        assert told.value.code == "training_off"
        assert client.fine_tuning.jobs.list().data == []
