"""Jobs end to end with OpenAI's client: a file goes in, a model answers on the same server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from manylora.adapters.base_models.stored import StoredModel, fingerprint
from tests.support.running_server import Running, serving, tiny_service
from tests.support.training_runs import PAIRS
from tests.support.tuning import ROWS, begin, ended, step_of, upload, when
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

QUESTION: Any = [{"role": "user", "content": "say 3"}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"), training="local")
    with serving(service) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return running.client()


@pytest.fixture(scope="module")
def done(client: openai.OpenAI) -> Any:
    """One job that has succeeded."""
    job = begin(client, suffix="my model", metadata={"for": "tests"})
    assert job.status == "validating_files"
    assert job.fine_tuned_model is None
    return ended(client, job)


def answer(client: openai.OpenAI, model: str) -> str:
    told = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, temperature=0)
    assert told.model.startswith(model)
    return told.choices[0].message.content or ""


def test_a_job_makes_a_model_that_answers(running: Running, client: openai.OpenAI, done: Any) -> None:
    assert done.status == "succeeded", done.error
    name = done.fine_tuned_model
    assert name == f"ft:tiny:local:my-model:{done.id.removeprefix('ftjob-')[:8]}"
    assert answer(client, name) != answer(client, "tiny")
    assert name in {model.id for model in client.models.list()}
    assert (done.trained_tokens, done.hyperparameters.n_epochs, done.finished_at > 0) == (1352, 2, True)
    mixed = client.chat.completions.create(model=f"{name}*0.5", messages=QUESTION, max_tokens=2)
    assert mixed.choices
    with running.http() as http:
        facts = http.get(f"/v1/adapters/{name}").json()
    (revision,) = facts["revisions"]
    assert revision["lineage"]["job"] == done.id
    assert revision["lineage"]["config"]["r"] == 4
    assert len(revision["lineage"]["data"]) == 64


def test_what_happened_is_told_in_pages_and_as_a_stream(
    running: Running, client: openai.OpenAI, done: Any
) -> None:
    pages = client.fine_tuning.jobs.list_events(done.id, limit=3)
    assert pages.has_more
    events = list(pages)[::-1]  # the client asks for page after page
    messages = [event.message for event in events if event.type == "message"]
    assert messages == [
        f"Created fine-tuning job: {done.id}",
        f"Validating training file: {done.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Checkpoint created at step 3",
        "Checkpoint created at step 6",
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    metrics: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert [each["step"] for each in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(each["train_loss"] > 0 and each["grad_norm"] > 0 for each in metrics)
    with running.http() as http:
        streamed = http.get(f"/v1/fine_tuning/jobs/{done.id}/events?stream=true").text
    assert [event.id in streamed for event in events] == [True] * len(events)


def test_checkpoints_answer(client: openai.OpenAI, done: Any) -> None:
    found = list(client.fine_tuning.jobs.checkpoints.list(done.id))
    assert [each.step_number for each in found] == [6, 3]
    names = [each.fine_tuned_model_checkpoint for each in found]
    assert names == [f"{done.fine_tuned_model}:ckpt-step-{step}" for step in (6, 3)]
    assert answer(client, names[0]) == answer(client, done.fine_tuned_model)
    early = client.models.retrieve(names[1])
    assert early.revision != client.models.retrieve(names[0]).revision  # type: ignore[attr-defined]
    assert (found[0].metrics.train_loss or 0) > 0


def test_result_files(running: Running, client: openai.OpenAI, done: Any, model: Path) -> None:
    table, report, card = done.result_files
    assert client.files.retrieve(table).purpose == "fine-tune-results"
    lines = client.files.content(table).text.splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert client.files.retrieve(report).filename == "report.html"
    assert client.files.content(report).text.startswith("<!doctype html>")
    assert client.files.retrieve(card).filename == "README.md"
    assert f"# {done.fine_tuned_model}" in client.files.content(card).text
    for file in done.result_files:  # nothing says where things are on the server
        for place in (running.service.config.data_dir, model):
            assert str(place) not in client.files.content(file).text


@pytest.mark.sweep
def test_a_job_goes_on_from_a_model_with_preferences(client: openai.OpenAI, done: Any) -> None:
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": pair["prompt"]}]},
            "preferred_output": [{"role": "assistant", "content": pair["chosen"]}],
            "non_preferred_output": [{"role": "assistant", "content": pair["rejected"]}],
        }
        for pair in PAIRS
    ]
    numbers = {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 20, "beta": 0.2}
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": numbers}}
    job = ended(
        client,
        client.fine_tuning.jobs.create(
            model=done.fine_tuned_model,
            training_file=upload(client, pairs),
            method=method,
            seed=1,
        ),
    )
    assert job.status == "succeeded", job.error
    assert job.method.dpo.hyperparameters.beta == 0.2
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1]
    margins = [e.data["train_reward_margin"] for e in events if e.type == "metrics"]
    assert margins[-1] > margins[0]
    assert answer(client, job.fine_tuned_model)


@pytest.mark.sweep
def test_what_a_job_would_take(running: Running, client: openai.OpenAI) -> None:
    file, few = upload(client), upload(client, ROWS[:5])
    with running.http() as http:
        http.timeout = 120
        body = {"model": "tiny", "training_file": file, "lora": {"r": 4}}
        told = http.post("/v1/fine_tuning/jobs?dry_run=true", json=body).json()
        assert (told["rows"], told["steps"]) == (24, 60)
        assert told["hyperparameters"] == {"n_epochs": 10, "batch_size": 4, "learning_rate_multiplier": 1.0}
        assert told["trained_tokens"] == 10 * told["tokens"]
        assert told["memory_bytes"] > 0
        assert told["seconds"] > 0
        assert told["warnings"] == []
        assert "say 0" in "".join(part["text"] for part in told["example"] if not part["learned"])
        assert "0!" in "".join(part["text"] for part in told["example"] if part["learned"])
        wrong = {"messages": [{"role": "bot", "content": "x"}]}
        bad = upload(client, [*ROWS, wrong, ROWS[0], wrong])
        faults = http.post("/v1/fine_tuning/jobs?dry_run=true", json={**body, "training_file": bad}).json()
        lines = faults["error"]["message"].splitlines()
        assert [line.partition(":")[0] for line in lines] == ["line 25", "line 27"]
        refused = http.post("/v1/fine_tuning/jobs?dry_run=true", json={**body, "training_file": few})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_n_examples"
        assert file not in [job["training_file"] for job in http.get("/v1/fine_tuning/jobs").json()["data"]]


@pytest.mark.sweep
def test_the_worker_is_killed(running: Running, client: openai.OpenAI) -> None:
    """In the middle of its steps: another takes the job up, and takes none of the steps twice."""
    numbers = {"n_epochs": 40, "batch_size": 2, "learning_rate_multiplier": 20}
    job = begin(client, hyperparameters=numbers)
    when(client, job.id, lambda found: step_of(found) >= 60)
    process = running.service.tuning.worker.process  # type: ignore[union-attr]
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    job = ended(client, job)
    assert job.status == "succeeded", job.error
    csv = client.files.content(job.result_files[0]).text.splitlines()[1:]
    assert [int(line.split(",")[0]) for line in csv] == list(range(1, 481))
    assert answer(client, job.fine_tuned_model)


def test_a_deleted_model_is_gone_with_its_checkpoints(client: openai.OpenAI, done: Any) -> None:
    name = done.fine_tuned_model
    others = {model.id for model in client.models.list() if not model.id.startswith(name)}
    assert client.models.delete(f"{name}:ckpt-step-3").deleted
    assert answer(client, name)
    assert client.models.delete(name).deleted
    for gone in (name, f"{name}:ckpt-step-6", f"{name}:ckpt-step-3"):
        with pytest.raises(openai.NotFoundError):
            answer(client, gone)
        with pytest.raises(openai.NotFoundError):
            client.models.delete(gone)
    assert {model.id for model in client.models.list()} == others


def test_the_base_is_known_by_its_files(running: Running, model: Path) -> None:
    """Workers elsewhere know it so."""
    assert running.service.tuning.base == fingerprint(StoredModel(model))


def test_directories_of_ended_jobs_are_removed(running: Running) -> None:
    root = running.service.config.data_dir / "tuning"
    running.service.tuning.clean_up()
    wait_until(lambda: not list(root.glob("ftjob-*")))
