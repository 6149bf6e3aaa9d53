"""``manylora jobs`` against a real server whose jobs wait, and how jobs are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manylora.adapters.registry.tuning.leases import Said
from manylora.adapters.registry.tuning.states import Need
from manylora.server.cli.jobs.lines import bar, curve, estimate_line, event_text, job_line
from manylora.server.cli.main import app
from tests.support.running_server import Running, serving, tiny_service
from tests.support.training_data import write
from tests.support.tuning import ROWS

EXACT = {"type": "string_check", "name": "exact", "input": "{{sample.output_text}}", "operation": "eq",
         "reference": "{{item.reference_answer}}"}  # fmt: skip


def run(server: Running, line: str, status: int = 0) -> str:
    """What a command prints."""
    env = {"MANYLORA_URL": server.url, "COLUMNS": "200"}
    result = CliRunner(env=env).invoke(app, line.split())
    assert result.exit_code == status, result.output
    return result.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"), training="external")) as running:
        yield running


@pytest.mark.slow
def test_a_job_from_its_file_to_its_end(server: Running, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS)
    options = "--model tiny --suffix mine --epochs 3 --batch-size 4 --lora-r 8 --seed 5"
    options += " --samples 3 --early-stopping-patience 2 --validation"
    other = write(tmp_path / "other.jsonl", ROWS[:3])
    made = json.loads(run(server, f"jobs create {rows} {options} {other} --json"))
    job = made["id"]
    assert made["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": "auto"
    }  # fmt: skip
    assert (made["lora"], made["seed"], made["user_provided_suffix"]) == ({"r": 8}, 5, "mine")
    assert made["validation_file"]
    assert made["task"] is None
    assert (made["samples"], made["early_stopping_patience"]) == (3, 2)
    grader = tmp_path / "grader.json"
    grader.write_text("{")
    run(server, f"jobs create {rows} --model tiny --grader {grader}", status=2)
    grader.write_text(json.dumps(EXACT))
    exact = json.loads(run(server, f"jobs create {rows} --model tiny --grader {grader} --json"))
    assert (exact["grader"], exact["samples"]) == (EXACT, 8)
    run(server, f"jobs cancel {exact['id']}")
    classes = json.loads(run(server, f"jobs create {rows} --model tiny --task classification --json"))
    assert classes["task"] == "classification"
    run(server, f"jobs cancel {classes['id']}")
    assert [job, "validating_files", "tiny"] == run(server, "jobs ls").splitlines()[-1].split()[:3]
    assert "paused" in run(server, f"jobs pause {job}")
    run(server, f"jobs pause {job}", status=1)
    assert "validating_files" in run(server, f"jobs resume {job}")
    worker = server.service.adapters.registry.tuning_leases("a worker")
    worker.take([Need.VALIDATION], server.service.tuning.base)
    measured = {"step": 1, "total_steps": 4, "train_loss": 2.0, "tokens_per_second": 10.0}
    worker.tell(job, Said("Step 1/4: training loss=2.0000", metrics=measured))
    assert "cancelled" in run(server, f"jobs cancel {job}")
    logs = run(server, f"jobs logs {job}").splitlines()
    assert [line.split("  ", 1)[1] for line in logs] == [
        f"Created fine-tuning job: {job}",
        "The job has been paused",
        "The job has been resumed",
        "Step 1/4: training loss=2.0000",
        "The job has been cancelled",
    ]
    watched = run(server, f"jobs watch {job}", status=1)
    assert "██████░░░░░░░░░░░░░░░░░░ 1/4 train loss 2.000  10 tokens/s" in watched
    run(server, f"jobs create {rows} --model tiny --epochs 51", status=1)
    run(server, "jobs watch nothing", status=1)


def test_bars_and_curves() -> None:
    assert bar({"step": 2, "total_steps": 4}).startswith("████████████░░░░░░░░░░░░ 2/4")
    assert curve([]) == ""
    assert curve([1.0]) == "▁"
    assert curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert len(curve([float(n) for n in range(1000)])) == 40


def test_a_sample_in_lines() -> None:
    data = {"prompt": "say\n 3", "expected": "3!", "base": "\x1b[2J" + "x" * 999, "trained": "", "line": 3}
    event = {"created_at": 0, "level": "info", "message": "Sample at step 6", "type": "sample", "data": data}
    first, *lines = event_text(event).splitlines()
    assert first.endswith("Sample at step 6")
    assert [line.split(None, 1) for line in lines[:2]] == [["prompt", "say 3"], ["expected", "3!"]]
    assert "\x1b" not in lines[2]
    assert lines[2].endswith("x…")
    assert lines[3].split() == ["trained"]


def test_a_job_in_a_line() -> None:
    job = {"id": "ftjob-1", "status": "failed", "model": "tiny\x1b[2J", "fine_tuned_model": None,
           "error": {"code": "c", "message": "no\x07"}}  # fmt: skip
    assert "\x1b" not in job_line(job)
    assert job_line(job).endswith("c: no\ufffd")
    graded = {"published": True, "base": 0.0, "trained": 0.75}
    done = {**job, "error": None, "grades": {"steps": [{"published": False}, graded]}}
    assert job_line(done).endswith("(grade: base 0.000, trained 0.750)")
    assert job_line({**done, "grades": {"steps": [{**graded, "trained": None}]}}).endswith("(no grades)")
    found = {"rows": 1, "trained_tokens": 2, "steps": 3, "seconds": 4.4, "memory_bytes": 5e9,
             "hyperparameters": {"n_epochs": 6}}  # fmt: skip
    assert estimate_line(found) == "1 rows, 2 tokens in 3 steps (n_epochs 6); about 4 s and 5.00 GB"
