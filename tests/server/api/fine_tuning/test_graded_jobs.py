"""A job's grader: the server that publishes has it judge what base and adapter answered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN, bearer, manager, publish
from tests.support.tuning import ROWS, as_trained, begin, ended, packed
from tests.support.waiting import wait_until

EXACT: dict[str, Any] = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.messages[1].content}}",
}
JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "beta",
    "input": [{"role": "user", "content": "How good is {{sample.output_text}}?"}],
    "sampling_params": {"max_completions_tokens": 16, "seed": 1, "temperature": 0},
}


def sample(step: int, line: int, base: str, adapter: str, **more: Any) -> dict[str, Any]:
    row = {"prompt": f"say {line - 1}", "expected": f"{line - 1}!", "line": line}
    return {"kind": "sample", "step": step, "seconds": 1, **row, "base": base, "adapter": adapter, **more}


LINES = [
    {"kind": "train", "step": 3, "seconds": 1, "loss": 2.5},
    sample(3, 1, "no", "0!"),
    sample(3, 2, "1!", "no"),
    sample(3, 3, "no", "no"),
    {"kind": "train", "step": 4, "seconds": 1, "loss": 1.5},
    {"kind": "eval", "step": 4, "seconds": 1, "eval_loss": 1.25},
    sample(4, 1, "no", "0!", published=True),
    sample(4, 2, "1!", "1!", published=True),
    sample(4, 3, "no", "no", published=True),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    service = service_of(
        tmp_path_factory.mktemp("data"), model, adapters, admin_api_key=[ADMIN], training="external"
    )
    with serving(service) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return running.client(api_key=ADMIN)


def graded(running: Running, client: openai.OpenAI, adapters: Path, grader: Any) -> Any:
    """A job with a grader, trained as :data:`LINES` say and published."""
    job = begin(client, extra={"grader": grader})
    assert (job.samples, job.grader) == (8, grader)
    return done(running, client, adapters, job)


def prepared(running: Running, adapters: Path, job: str) -> None:
    """Leave the job as a worker does that has trained it."""
    folder = running.service.tuning.folder(job)
    made = folder.root / "made"
    made.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapters / "alpha" / name, made / name)
    (made / "README.md").write_text("# It\n\n## Results\n\nGood.\n\n## Data\n\nRows.\n")
    folder.run.mkdir(parents=True)
    (folder.run / "report.html").write_text("<html><h2>Curves</h2></html>")
    as_trained(running, job, made, adapters / "beta", LINES)


def done(running: Running, client: openai.OpenAI, adapters: Path, job: Any) -> Any:
    prepared(running, adapters, job.id)
    job = ended(client, job)
    assert job.status == "succeeded", job.error
    return job


def told(client: openai.OpenAI, job: Any) -> list[Any]:
    return [
        e for e in list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1] if "rade" in e.message
    ]


def card(client: openai.OpenAI, job: Any) -> str:
    """The model's card."""
    return client.files.content(job.result_files[2]).text


def test_grades_stand_beside_the_losses(running: Running, client: openai.OpenAI, adapters: Path) -> None:
    """In events, at checkpoints, in the job, in card and report."""
    job = graded(running, client, adapters, EXACT)
    third = pytest.approx(1 / 3)
    first, last = job.grades["steps"]
    assert (first["step"], first["base"], first["trained"], first["graded"]) == (3, third, third, 3)
    assert (last["step"], last["base"], last["trained"], last["published"]) == (
        4,
        third,
        2 * third.expected,
        True,
    )
    assert job.grades["answers"][1] == {"line": 2, "base": 1.0, "trained": 1.0}
    one, other = told(client, job)
    assert one.message == "Grade 'exact' of step 3: base 0.333, trained 0.333, training loss 2.5000"
    assert other.data["valid_loss"] == 1.25
    assert other.data["trained_grade"] == pytest.approx(2 / 3)
    checkpoint: Any
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert (checkpoint.metrics.base_grade, checkpoint.metrics.train_loss) == (third, 2.5)
    assert "| 4, the result | 1.500 | 1.250 | 0.333 | 0.667 | 3 |" in card(client, job)
    report = client.files.content(job.result_files[1]).text
    assert "<td>4, the result</td><td>1.500</td><td>1.250</td><td>0.333</td><td>0.667</td>" in report


def test_a_model_of_this_server_judges(running: Running, client: openai.OpenAI, adapters: Path) -> None:
    grader = {"type": "multi", "name": "<b>", "graders": {"exact": EXACT, "judge": JUDGE},
              "calculate_output": "(exact + judge) / 2"}  # fmt: skip
    job = graded(running, client, adapters, grader)
    last = job.grades["steps"][-1]
    assert last["graded"] + sum(last["errors"].values()) >= 3
    assert last["trained"] is None or 0 <= last["trained"] <= 1
    assert "<b>" not in client.files.content(job.result_files[1]).text


def test_a_judge_that_is_gone_fails_no_job(running: Running, client: openai.OpenAI, adapters: Path) -> None:
    with running.http(headers=bearer(ADMIN)) as http:
        assert publish(http, bearer(ADMIN), "judge", adapters / "beta").is_success
        job = begin(client, extra={"grader": {**JUDGE, "model": "judge"}})
        assert http.delete("/v1/adapters/judge").is_success
    job = done(running, client, adapters, job)
    assert job.grades["fault"].startswith("the grader can't be used: model: ")
    (event,) = told(client, job)
    assert (event.level, event.message) == ("warn", f"There are no grades: {job.grades['fault']}")
    assert "There are none: the grader can't be used" in card(client, job)


def test_judges_are_those_that_the_owner_may_ask(running: Running, adapters: Path) -> None:
    """When the job is made; and later it is the owner who asks."""
    with running.http() as http:
        acme = manager(http, "acme")
        form = {"file": ("rows.jsonl", packed(ROWS))}
        file = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}, headers=acme).json()["id"]
        body = {"model": "tiny", "training_file": file, "grader": JUDGE, "samples": 3}
        refused = http.post("/v1/fine_tuning/jobs", json=body, headers=acme)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "grader.model")
        assert publish(http, acme, "beta", adapters / "beta").is_success
        job = http.post("/v1/fine_tuning/jobs", json=body, headers=acme).json()
        assert job["samples"] == 3
        prepared(running, adapters, job["id"])
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        wait_until(lambda: http.get(path, headers=acme).json()["status"] == "succeeded")
        assert http.get(path, headers=acme).json()["grades"]["fault"] is None
        used = http.get("/v1/usage?tenant=acme", headers=bearer(ADMIN)).json()["data"]
        http.delete("/v1/tenants/acme?adapters=true", headers=bearer(ADMIN))
    assert [each["model"] for each in used] == ["acme/beta"]
