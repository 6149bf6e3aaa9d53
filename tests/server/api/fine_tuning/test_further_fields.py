"""Jobs by fields beyond OpenAI's: classes and embeddings, which answer on routes of their own; early ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.running_server import Running, serving, tiny_service
from tests.support.tuning import ROWS, begin, ended, upload

pytestmark = [pytest.mark.slow, pytest.mark.sweep]  # a job of each kind

LETTERS = "abcdefghijkl"
LABELS = [{"text": f"{'good' if n % 2 else 'bad'} {n}", "label": ("no", "yes")[n % 2]} for n in range(40)]
PAIRS = [{"anchor": f"ask {a}{n}", "positive": f"{a}{a} {n} it is"} for a in LETTERS for n in range(3)]
EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
}
NUMBERS = {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 50}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"), training="local")) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return running.client()


def trained(client: openai.OpenAI, task: str, rows: Any, held_out: Any, **fields: Any) -> Any:
    """A job of a task that has succeeded."""
    job = begin(
        client,
        rows,
        hyperparameters=NUMBERS,
        validation_file=upload(client, held_out),
        extra={"task": task},
        **fields,
    )
    job = ended(client, job)
    assert job.status == "succeeded", job.error
    assert job.task == task
    return job


@pytest.fixture(scope="module")
def classifier(client: openai.OpenAI) -> Any:
    return trained(client, "classification", LABELS[:30], LABELS[30:], suffix="classes")


def measured(client: openai.OpenAI, job: Any) -> list[Any]:
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1]
    return [event.data for event in events if event.type == "metrics"]


def test_classes(running: Running, client: openai.OpenAI, classifier: Any) -> None:
    """Of the model and of its checkpoints, whose events and tables have the accuracy."""
    name = classifier.fine_tuned_model
    with running.http() as http:
        for model in (name, *(each.fine_tuned_model_checkpoint for each in checkpoints(client, classifier))):
            told = http.post("/classify", json={"model": model, "input": ["bad 90", "good 91"]}).json()
            assert len(told["data"]) == 2, told
            assert {each["label"] for each in told["data"]} <= {"no", "yes"}, told
        told = http.post("/classify", json={"model": name, "input": ["bad 30", "good 31"]}).json()
        assert [each["label"] for each in told["data"]] == ["no", "yes"]
        facts = http.get(f"/v1/adapters/{name}").json()
    assert facts["revisions"][0]["lineage"]["config"]["type"] == "classification"
    lines = measured(client, classifier)
    assert lines[-2]["train_accuracy"] > lines[0]["train_accuracy"]
    assert 0 <= [line["valid_accuracy"] for line in lines if "valid_loss" in line][-1] <= 1
    assert "train_mean_token_accuracy" not in lines[0]
    assert classifier.scores["trained"]["accuracy"] >= classifier.scores["base"]["accuracy"]
    (newest, *_) = checkpoints(client, classifier)
    assert newest.metrics.train_accuracy == [x["train_accuracy"] for x in lines if "train_accuracy" in x][-1]
    assert newest.metrics.full_valid_accuracy == newest.metrics.valid_accuracy
    table = client.files.content(classifier.result_files[0]).text.splitlines()[1].split(",")
    assert float(table[2]) == lines[0]["train_accuracy"]


def test_one_that_classifies_writes_nothing(client: openai.OpenAI, classifier: Any) -> None:
    question: Any = [{"role": "user", "content": "good 1"}]
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model=classifier.fine_tuned_model, messages=question)
    assert told.value.code == "unsupported_task"


def test_a_job_goes_on_from_its_own_task_alone(client: openai.OpenAI, classifier: Any) -> None:
    answers = ended(client, begin(client, model=classifier.fine_tuned_model, extra={"lora": {}}))
    assert (answers.status, answers.error.param) == ("failed", "model")
    assert "SEQ_CLS" in answers.error.message
    assert "adapters/" not in answers.error.message
    again = begin(
        client, LABELS[:30], model=classifier.fine_tuned_model, extra={"task": "classification", "lora": {}}
    )
    assert ended(client, again).status == "succeeded"


@pytest.mark.sweep
def test_rows_of_another_task_are_named_by_line(client: openai.OpenAI) -> None:
    for task, rows in (("classification", ROWS), ("embedding", LABELS)):
        job = ended(client, begin(client, rows, extra={"task": task}))
        assert (job.status, job.error.param) == ("failed", "training_file")
        assert f"this run's task is {task}" in job.error.message
    bad = ended(client, begin(client, [*LABELS[:12], {"text": "x"}], extra={"task": "classification"}))
    assert bad.error.message.startswith("line 13: ")


def test_embeddings(client: openai.OpenAI) -> None:
    job = trained(client, "embedding", PAIRS[:30], PAIRS[30:])
    name = job.fine_tuned_model
    texts = ["ask a0", "aa 0 it is"]

    def vectors(model: str) -> list[list[float]]:
        return [each.embedding for each in client.embeddings.create(model=model, input=texts).data]

    assert vectors(name) != vectors("tiny")
    assert sum(number**2 for number in vectors(name)[0]) == pytest.approx(1.0, abs=1e-5)
    lines = measured(client, job)
    assert all(0 <= line["train_accuracy"] <= 1 for line in lines if "train_loss" in line)
    assert [line["valid_accuracy"] for line in lines if "valid_loss" in line]
    assert job.scores["trained"].keys() >= {"loss", "accuracy@1"}
    (newest, *_) = checkpoints(client, job)
    assert vectors(newest.fine_tuned_model_checkpoint) != vectors("tiny")
    question: Any = [{"role": "user", "content": "ask a0"}]
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model=name, messages=question)
    assert told.value.code == "unsupported_task"


def test_a_job_that_learns_no_more_is_stopped(client: openai.OpenAI) -> None:
    """Few rows at a high rate: the validation loss falls, and rises again. The best step is published."""
    numbers = {"n_epochs": 40, "batch_size": 4, "learning_rate_multiplier": 100}
    job = begin(
        client,
        ROWS[:12],
        hyperparameters=numbers,
        validation_file=upload(client, ROWS[12:]),
        extra={"early_stopping_patience": 2},
    )
    job = ended(client, job)
    assert (job.status, job.early_stopping_patience) == ("succeeded", 2), job.error
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    (told,) = [event for event in events if event.message.startswith("The training is stopped early: ")]
    assert told.data["step"] == max(steps) < told.data["planned_steps"] == 120
    valid = {e.data["step"]: e.data["valid_loss"] for e in events if "valid_loss" in e.data}
    best = min(valid, key=lambda step: valid[step])
    assert f"The step with the lowest validation loss is kept: {best} of {max(steps)}" in [
        event.message for event in events
    ]
    assert job.scores["trained"]["loss"] == pytest.approx(valid[best], rel=1e-2)
    assert 1 <= len(checkpoints(client, job)) <= 3
    in_all = job.trained_tokens * 120 / max(steps)  # that all 40 passes would have come to
    assert (in_all % 40, in_all / 40) == (0, pytest.approx(330, abs=30))


def test_samples_of_the_model_beside_the_base(client: openai.OpenAI) -> None:
    """Of the first rows, at the checkpoints and of what is published, which answers the same when asked."""
    fields = {"samples": 2, "sample_tokens": 8, "grader": EXACT}
    job = ended(client, begin(client, hyperparameters=NUMBERS, extra=fields))
    assert job.status == "succeeded", job.error
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1]
    samples = [event.data for event in events if event.type == "sample"]
    steps = [step.step_number for step in checkpoints(client, job)][::-1]
    assert [(each["step"], each["line"], each["published"]) for each in samples] == [
        (step, line, published)
        for step, published in [*((step, False) for step in steps), (12, True)]
        for line in (1, 2)
    ]
    assert steps == [6, 9, 12]
    assert [(each["prompt"], each["expected"]) for each in samples[:2]] == [("say 0", "0!"), ("say 1", "1!")]
    for each in samples[-2:]:
        question: Any = [{"role": "user", "content": each["prompt"]}]
        for model, text in ((job.fine_tuned_model, each["trained"]), ("tiny", each["base"])):
            told = client.chat.completions.create(
                model=model, messages=question, max_tokens=8, temperature=0, extra_body={"logprobs": False}
            )
            assert told.choices[0].message.content == text
    assert [each["step"] for each in job.grades["steps"]] == [*steps, 12]
    right = sum(each["trained"] == each["expected"] for each in samples[-2:]) / 2
    assert (job.grades["steps"][-1]["trained"], job.grades["steps"][-1]["graded"]) == (right, 2)
    report = client.files.content(job.result_files[1]).text
    assert "While it trained" in report
    assert "The grader 'exact' on 2 rows" in report


@pytest.mark.sweep
def test_what_a_job_of_a_task_would_take(running: Running, client: openai.OpenAI) -> None:
    with running.http() as http:
        http.timeout = 120
        body = {"model": "tiny", "training_file": upload(client, LABELS[:30]), "task": "classification"}
        told = http.post("/v1/fine_tuning/jobs?dry_run=true", json=body).json()
        assert (told["rows"], told["steps"]) == (30, 80)
        wrong = http.post("/v1/fine_tuning/jobs?dry_run=true", json={**body, "task": "embedding"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "training_file")


def checkpoints(client: openai.OpenAI, job: Any) -> list[Any]:
    return list(client.fine_tuning.jobs.checkpoints.list(job.id))
